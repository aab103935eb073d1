"""Rules that docker-ipv6nat or a switched-off engine left behind: scenario C6."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.harness import Answer, Bus, Daemon, Engine, Sandbox, serve, tcp, until
from tests.harness.process import LabError
from tests.harness.sandbox import CLIENT, HOST, Variant
from tests.system.packets.asking import dnats, opened, peer

STALE = """\
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d ::1/128 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s fd00:a::/64 ! -o brX -j MASQUERADE
-A POSTROUTING -o brX -m addrtype --dst-type LOCAL -j MASQUERADE
-A DOCKER -i brX -j RETURN
-A DOCKER ! -i brX -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:a::99]:80
COMMIT
*filter
:DOCKER - [0:0]
:DOCKER-ISOLATION-STAGE-1 - [0:0]
-A FORWARD -j DOCKER-ISOLATION-STAGE-1
-A FORWARD -o brX -j DOCKER
-A FORWARD -o brX -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -i brX ! -o brX -j ACCEPT
-A FORWARD -i brX -o brX -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -j RETURN
COMMIT
"""
"""Rules of a killed docker-ipv6nat, for a container that has another address now."""

PERSONAL = """\
*raw
-A PREROUTING -s 2001:db8:99::/48 -j DROP
COMMIT
*filter
:DOCKER-USER - [0:0]
-A DOCKER-USER -s 2001:db8:99::/48 -j DROP
-A FORWARD -i vmbr0 ! -o vmbr0 -j ACCEPT
COMMIT
*nat
-A POSTROUTING -s fd00:99::/64 ! -o vmbr0 -j MASQUERADE
COMMIT
"""
LEFTOVERS_WARNING = "stale IPv6 rules of the engine or of docker-ipv6nat"


@dataclass(frozen=True, kw_only=True)
class Lab:
    sandbox: Sandbox
    engine: Engine
    daemon: Daemon

    def load(self, text: str) -> None:
        file = self.sandbox.dir / "rules"
        file.write_text(text)
        self.sandbox.host.run(f"ip6tables-{self.sandbox.variant}-restore", "-n", str(file))

    def theirs(self) -> list[str]:
        """The lines that do not belong to ipv6natd."""
        lines = self.sandbox.rules().splitlines()
        return [each for each in lines if "IPV6NAT" not in each and "ipv6natd" not in each]

    def cleanup(self, *words: str) -> str:
        return self.daemon.ctl("cleanup", "--leftovers", *words)


@contextmanager
def lab(variant: Variant, *, ip6tables: bool) -> Iterator[Lab]:
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(variant))
        engine = stack.enter_context(Engine(sandbox, ip6tables=ip6tables))
        bus = stack.enter_context(Bus(sandbox.dir))
        daemon = stack.enter_context(Daemon(sandbox, engine.endpoint, bus=bus.address, start=False))
        engine.network("X", "fd00:a::/64")
        yield Lab(sandbox=sandbox, engine=engine, daemon=daemon)


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_c6_leftovers_of_docker_ipv6nat_are_reported_and_removed_on_request(
    tools: None,  # noqa: ARG001
    variant: Variant,
) -> None:
    with lab(variant, ip6tables=False) as made:
        made.load(PERSONAL)
        before = made.theirs()
        made.load(STALE)
        stale = made.theirs()
        x1 = made.engine.run("x1", "X", publish=["8080:80"])
        made.daemon.start(wait="degraded")
        assert LEFTOVERS_WARNING in made.daemon.status
        with serve(x1.ns, "x1", tcp=[80]):
            # The stale rules are first and lead to a missing address, so a warning is necessary.
            assert not isinstance(tcp(made.sandbox.client, HOST, 8080, timeout=0.3), Answer)
            rows = json.loads(made.cleanup("--dry-run", "--json=short"))
            assert len(rows) == 12
            assert made.theirs() == stale

            made.cleanup()
            assert made.theirs() == before
            assert opened(made.sandbox.client, 8080).peer == CLIENT
            assert made.daemon.wait_state("synced")
        assert json.loads(made.cleanup("--json=short")) == []


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_c6_engine_rules_are_leftovers_only_after_ip6tables_is_off(
    tools: None,  # noqa: ARG001
    variant: Variant,
) -> None:
    """20.10, killed and restarted with ip6tables off, so that its rules remain."""
    with lab(variant, ip6tables=True) as made:
        x1 = made.engine.run("x1", "X", "--restart=always", publish=["8080:80"])
        made.daemon.start()
        own = made.theirs()
        with pytest.raises(LabError, match="writes IPv6 rules itself"):
            made.cleanup()
        assert made.theirs() == own

        made.engine.kill()
        made.engine.ip6tables = False
        made.engine.start()
        until(lambda: LEFTOVERS_WARNING in made.daemon.status, True, timeout=15)
        made.cleanup()
        assert not any("DOCKER" in each for each in made.theirs() if "DOCKER-USER" not in each)
        assert not any("brX" in each for each in made.theirs())
        x1 = made.engine.container("x1")
        with serve(x1.ns, "x1", tcp=[80]):
            assert peer(opened(made.sandbox.client, 8080)) == CLIENT


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_c6_engine_that_begins_to_manage_ipv6_takes_over_without_leftovers(
    variant: Variant,
) -> None:
    """The steps of docs/migration.md to Docker's own IPv6 NAT, with an engine of 20.10."""
    with lab(variant, ip6tables=False) as made:
        client = made.sandbox.client
        x1 = made.engine.run("x1", "X", "--restart=always", publish=["8080:80"])
        made.daemon.start()
        with serve(x1.ns, "x1", tcp=[80]):
            assert peer(opened(client, 8080)) == CLIENT

        made.engine.stop()
        made.engine.ip6tables = True
        made.engine.start()
        until(lambda: " native" in made.daemon.ctl("mappings"), True, timeout=15)
        ours = [rule for rule in dnats(made.sandbox.rules(), 8080) if "IPV6NAT" in rule]
        assert ours == []
        x1 = made.engine.container("x1")
        with serve(x1.ns, "x1", tcp=[80]):
            assert peer(opened(client, 8080)) == CLIENT
            made.daemon.stop()
            assert made.daemon.flush()
            assert "IPV6NAT" not in made.sandbox.rules()
            assert peer(opened(client, 8080)) == CLIENT
