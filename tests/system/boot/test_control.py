"""The interfaces of the service for root and for a plain user of a booted host."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests import harness
from tests.system.boot.host import MANAGER, Host

ROOT: tuple[str, ...] = ()
PLAIN = ("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups")
OPERATOR = ("setpriv", "--reuid=daemon", "--regid=daemon", "--clear-groups")

READING = ("status", "mappings --container 'w*'", "explain 8080")
CHANGING = ("resync", "reload", "cleanup", "cleanup --leftovers")
TEXTFILE = "/var/lib/prometheus/node-exporter"
DROP_IN = "/etc/systemd/system/ipv6natd.service.d"
CONFIG = "/etc/ipv6natd/conf.d"


def codes(host: Host, who: tuple[str, ...], *commands: str) -> dict[str, str]:
    """Command of ipv6natctl -> its exit code."""
    script = "".join(f"ipv6natctl {each} >/dev/null 2>&1; echo $?;" for each in commands)
    return dict(zip(commands, host.run(*who, "sh", "-c", script).split(), strict=True))


def exits(code: int, commands: tuple[str, ...]) -> dict[str, str]:
    return dict.fromkeys(commands, str(code))


@contextmanager
def polkit_example(host: Host) -> Iterator[None]:
    """The example in force, for the group of OPERATOR: group docker has no user on the host."""
    rule = "/etc/polkit-1/rules.d/50-ipv6natd.rules"
    example = "/usr/share/doc/ipv6natd/examples/50-ipv6natd.rules"
    host.sh(f'sed \'s/"docker"/"daemon"/\' {example} >{rule}')
    try:
        yield
    finally:
        host.run("rm", rule)


@pytest.mark.parametrize("who", [ROOT, PLAIN], ids=["root", "plain"])
def test_root_and_plain_user_can_read(host: Host, who: tuple[str, ...]) -> None:
    host.await_state('s "synced"')
    assert codes(host, who, *READING) == exits(0, READING)
    assert codes(host, who, "mappings --container nobody", "mappings --port x") == {
        "mappings --container nobody": "1",
        "mappings --port x": "2",
    }


def test_plain_user_cannot_change_anything_and_gets_the_sudo_command(host: Host) -> None:
    assert codes(host, PLAIN, *CHANGING) == exits(4, CHANGING)
    call = ("busctl", "--allow-interactive-authorization=no", "call", *MANAGER, "Cleanup")
    assert host.as_nobody(*call).endswith(": sudo ipv6natctl cleanup\n")
    level = ("systemctl", "service-log-level", "ipv6natd", "debug")
    assert "no agent can ask" in host.as_nobody(*level)
    assert host.state() == 's "synced"'


def test_masked_polkit_counts_as_missing_polkit(host: Host) -> None:
    host.run("systemctl", "mask", "--now", "polkit")
    try:
        assert "does not answer, so only root" in host.as_nobody("ipv6natctl", "check")
        assert codes(host, PLAIN, *READING, "resync") == exits(0, READING) | {"resync": "4"}
    finally:
        host.run("systemctl", "unmask", "polkit")


def test_polkit_example_permits_all_to_its_group_and_nothing_to_others(host: Host) -> None:
    with polkit_example(host):
        asked = harness.until(
            lambda: host.as_nobody("ipv6natctl", "status"), lambda said: "sudo" in said, timeout=10
        )
        assert asked.endswith(": sudo ipv6natctl status\n")
        assert codes(host, OPERATOR, "mappings", "resync") == {"mappings": "0", "resync": "0"}
        assert "sudo ipv6natctl networks" not in host.as_nobody("ipv6natctl", "check")
    assert harness.until(lambda: codes(host, PLAIN, "status")["status"], "0", timeout=10) == "0"


def test_systemctl_service_log_level_sets_the_log_level(host: Host) -> None:
    host.run("systemctl", "service-log-level", "ipv6natd", "debug")
    assert codes(host, ROOT, "cleanup", "resync") == {"cleanup": "0", "resync": "0"}
    host.run("systemctl", "service-log-level", "ipv6natd", "info")
    said = host.journal()
    assert "rule removed: ip6tables -t nat -A IPV6NAT-DNAT " in said
    assert "rule added: ip6tables -t nat -A IPV6NAT-DNAT " in said


def test_journal_field_finds_a_container_with_its_catalog_text(host: Host) -> None:
    journal = ("journalctl", "--unit=ipv6natd", "--no-pager", "--catalog")
    told = host.run(*journal, "IPV6NATD_CONTAINER=web")
    assert "Subject: Port published over IPv6" in told
    assert "To list all forwarded ports: ipv6natctl mappings" in told
    assert "@" not in told


def test_metrics_file_is_written_with_the_drop_in_of_the_manual(host: Host) -> None:
    allow = f"[Service]\nReadWritePaths={TEXTFILE}\n"
    try:
        host.sh(f"mkdir -p {TEXTFILE} {DROP_IN}")
        host.sh(f"echo 'metrics_textfile = \"{TEXTFILE}/ipv6natd.prom\"' >{CONFIG}/lab.toml")
        host.sh(f"printf '{allow}' >{DROP_IN}/lab.conf; systemctl daemon-reload")
        host.restart()
        kept = harness.until(
            lambda: host.as_nobody("cat", f"{TEXTFILE}/ipv6natd.prom"),
            lambda said: "\nipv6natd_up 1\n" in said,
            timeout=20,
        )
        assert "\nipv6natd_up 1\n" in kept
    finally:
        host.sh(f"rm -r /var/lib/prometheus {DROP_IN} {CONFIG}/lab.toml; systemctl daemon-reload")
        host.restart()


def test_commands_and_bus_calls_do_not_start_a_stopped_service(host: Host) -> None:
    asked = ("explain 8080", "resync")
    host.run("systemctl", "stop", "ipv6natd")
    try:
        for who in (ROOT, PLAIN):
            assert codes(host, who, *asked) == exits(3, asked)
        assert "not provided by any" in host.as_nobody("busctl", "introspect", *MANAGER)
        assert "ipv6natd is not running" in host.as_nobody("ipv6natctl", "cleanup")
        assert host.show("ActiveState") == "inactive"
    finally:
        host.restart()
