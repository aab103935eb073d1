"""The environment, labels and options of containers, which ipv6natd must not disclose.

All users of the host can read the bus, and a journal has more readers than root.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Bus, Daemon, Engine, Sandbox, until

SECRET = "swordfish"
SECRET_OPTIONS = (
    f"--env=PASSWORD={SECRET}",
    f"--label=token={SECRET}",
    f"--hostname={SECRET}",
    "--health-cmd=none",
    f"--workdir=/{SECRET}",
    f"--log-opt=labels={SECRET}",
)


def files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.read_text(errors="replace")


@pytest.mark.slow
def test_container_secrets_are_never_logged_shown_or_stored(
    tools: None,  # noqa: ARG001
) -> None:
    with Sandbox() as sandbox, Engine(sandbox) as engine, Bus(sandbox.dir) as bus:
        engine.network("X", "fd00:a::/64", f"--label=secret={SECRET}")
        daemon = Daemon(sandbox, engine.endpoint, bus=bus.address, args=["-debug"], start=False)
        with daemon:
            (daemon.dir / "runtime").mkdir(exist_ok=True)
            path = daemon.dir / "runtime" / "a.prom"
            daemon.configure(f'backend = "{sandbox.variant}"', f'metrics_textfile = "{path}"')
            daemon.start()
            engine.run("x1", "X", *SECRET_OPTIONS, publish=["8080:80", "127.0.0.1:9:9"])
            daemon.wait_for(lambda: "1 mapping" in daemon.status, "the mapping")
            until(path.exists, True, timeout=15)
            asked = [
                *("status", "mappings", "networks", "skipped", "rules", "metrics", "check"),
                *("explain x1", "explain 8080", "resync", "cleanup --leftovers --dry-run"),
            ]
            said = [daemon.ctl(*each.split(), check=False) for each in asked]
            said += [daemon.ctl("--json", *each.split(), check=False) for each in asked]
            assert any("x1" in each for each in said)
            assert daemon.stop() == 0
            assert "rule added" in daemon.log
            kept = list(files(daemon.dir))
            for text in (*said, *daemon.notices, *kept, sandbox.rules()):
                assert SECRET not in text
