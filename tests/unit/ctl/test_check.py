"""`check` shows the findings of the daemon, and those of the host itself without the daemon."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from ipv6natd.ctl import check
from ipv6natd.ctl.client import DaemonClient, Options, Row
from ipv6natd.dbus.connection import ERROR, BusError
from ipv6natd.host.findings import Finding, HostFacts, Severity, Topic
from ipv6natd.model import ManagedBy
from ipv6natd.report.status import bus_fields, finding_row, network_row
from tests.harness.build import network
from tests.unit.report.test_checks import PROPERTIES

OFF = HostFacts(forwarding=False, docker_ipv6nat="kill 7")
ZONE = Finding(topic=Topic.FIREWALLD, problem="in no zone", command="firewall-cmd", network="a")
DENIED = BusError(ERROR + "AccessDenied", "not permitted")
ABSENT = BusError(ERROR + "ServiceUnknown", "nobody")

Lines = dict[str, tuple[str, str]]


class Daemon(DaemonClient):
    """A daemon with these findings; one that gives this error for each list, or does not run."""

    def __init__(self, answer: Iterable[Finding] | BusError) -> None:
        super().__init__()
        self._answer = answer

    async def properties(self) -> dict[str, Any]:
        if self._answer is ABSENT:
            raise ABSENT
        return PROPERTIES | {"State": "degraded", "StateReason": "in no zone: firewall-cmd"}

    async def unit_failure(self) -> str:
        return ""

    async def call(self, member: str, *_args: Any, **_options: Any) -> list[Row]:
        if isinstance(self._answer, BusError):
            raise self._answer
        if member == "ListNetworks":
            return [bus_fields(network_row(network(managed_by=ManagedBy.ENGINE)))]
        return [bus_fields(finding_row(finding)) for finding in self._answer]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Lines]:
    """Runs `check` on a host; returns topic -> verdict and text of its lines."""

    async def nothing(_: DaemonClient) -> None:
        return None

    monkeypatch.setattr(check, "_zones", nothing)
    monkeypatch.setattr(check, "_polkit", nothing)
    monkeypatch.setattr(check, "_probe", lambda: ("nft", True, None))
    monkeypatch.setattr(check, "_NET", tmp_path)

    def run(answer: Iterable[Finding] | BusError, facts: HostFacts) -> Lines:
        for read in ("read_host", "read_settings"):
            monkeypatch.setattr(check, read, lambda *_: facts)
        found = asyncio.run(check.check(Daemon(answer), Options())).value
        return {line["About"]: (line["Verdict"], line["Text"]) for line in found}

    return run


def test_findings_are_those_of_the_daemon_and_not_read_a_second_time(
    lines: Callable[..., Lines],
) -> None:
    warning = Finding(
        topic=Topic.NETWORK, severity=Severity.WARNING, problem="no effect", network="b"
    )
    found = lines((ZONE, warning), OFF)
    assert found["firewalld"] == ("bad", "in no zone")
    assert found["network"] == ("warning", "network b: no effect")
    assert found["docker-ipv6nat"][0] == "ok"
    assert "of 1 network itself" in found["docker"][1]


@pytest.mark.parametrize("error", [DENIED, ABSENT], ids=["denied", "not running"])
def test_without_a_list_of_the_daemon_the_host_is_read(
    lines: Callable[..., Lines], error: BusError
) -> None:
    found = lines(error, OFF)
    assert found["docker-ipv6nat"][0] == "bad"
    assert found["bridge"][0] == "unknown"
    assert found["firewalld"][0] == "ok"
    expected = "it is not running" if error is ABSENT else "degraded: in no zone: firewall-cmd"
    assert found["ipv6natd"] == ("bad", expected)


def test_only_the_daemon_knows_whether_an_open_router_is_one(lines: Callable[..., Lines]) -> None:
    """The engine may write IPv6 rules itself."""
    found = lines(ABSENT, HostFacts(interfaces=("eth0", "wg0")))
    assert found["firewall"][0] in ("ok", "unknown")
