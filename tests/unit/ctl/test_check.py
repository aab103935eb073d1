"""`check` and the daemon agree: a daemon with given answers, and given facts of the host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from ipv6natd.ctl import check
from ipv6natd.ctl.client import DaemonClient, Options, Row
from ipv6natd.host import facts as host_facts
from ipv6natd.host.findings import HostFacts
from ipv6natd.model import GatewayMode, Network
from ipv6natd.report.status import bus_fields, network_row
from tests.harness.build import network
from tests.unit.report.test_checks import PROPERTIES

FaultsOf = Callable[..., dict[str, str]]


class Daemon(DaemonClient):
    """A daemon with these properties, networks and leftovers."""

    def __init__(self, properties: Row, networks: Iterable[Network]) -> None:
        super().__init__()
        rows = [bus_fields(network_row(one)) for one in networks]
        self._answers = {"ListNetworks": rows, "ListLeftovers": []}
        self._properties = dict(properties)

    async def properties(self) -> dict[str, Any]:
        return self._properties

    async def call(self, member: str, *_args: Any, **_options: Any) -> Any:
        return self._answers[member]


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FaultsOf:
    """Runs `check`; returns topic -> text and command of its faults."""

    async def nothing(_: DaemonClient) -> None:
        return None

    monkeypatch.setattr(check, "_zones", nothing)
    monkeypatch.setattr(check, "_polkit", nothing)
    monkeypatch.setattr(check, "_probe", lambda: ("nft", True, None))
    monkeypatch.setattr(check, "_NET", tmp_path)
    monkeypatch.setattr(host_facts, "_NET", tmp_path)

    def run(
        read: Callable[[tuple[Network, ...]], HostFacts], *networks: Network, **changed: str
    ) -> dict[str, str]:
        monkeypatch.setattr(check, "read_host", lambda networks, *_: read(networks))
        daemon = Daemon(PROPERTIES | changed, networks)
        lines = asyncio.run(check.check(daemon, Options())).value
        bad = (line for line in lines if line["Verdict"] == "bad")
        return {line["About"]: f"{line['Text']}: {line['Fix']}" for line in bad}

    return run


def bridge(folder: Path, name: str, *ports: str) -> None:
    (folder / name / "bridge").mkdir(parents=True)
    for port in ("", *ports):
        (folder / name / "brif" / port).mkdir(parents=True, exist_ok=True)


def test_a_bridge_without_address_is_known_only_with_its_subnets(
    faults: FaultsOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bridge(tmp_path, "br-x")
    monkeypatch.setattr(host_facts, "_address_lines", list)

    def read(networks: tuple[Network, ...]) -> HostFacts:
        return HostFacts(bridges_without_address=host_facts._bridges_without_address(networks))

    with_gateway = network(gateway=IPv6Address("fd00:a::1"))
    assert "dev br-x nodad" in faults(read, with_gateway)["bridge"]
    unknown = Network(id="x", name="br-x", driver="bridge", bridge="br-x")
    assert not host_facts._bridges_without_address([unknown])


def test_check_knows_what_the_row_of_a_network_says(faults: FaultsOf) -> None:
    """Not the trusted interfaces: the row has none."""
    known = (
        network(source_address=IPv6Address("2001:db8::7")),
        network(name="y", gateway_mode=GatewayMode.ISOLATED),
        network(name="z", internal=True, icc=False),
        network(name="w", gateway_mode=GatewayMode.ROUTED, masquerade=False),
    )
    seen: list[Network] = []

    def read(networks: tuple[Network, ...]) -> HostFacts:
        seen.extend(networks)
        return HostFacts()

    assert "ipv6natd" not in faults(read, *known)
    assert seen == list(known)


def test_a_chain_that_drops_packets_of_a_trusted_interface_is_a_fault(faults: FaultsOf) -> None:
    problem = "nft chain forward of table inet mine drops packets of containers"
    command = "nft insert rule inet mine forward ct status dnat accept"
    reason = f"{problem}: {command} (and 1 more: sudo ipv6natctl check)"
    found = faults(lambda _: HostFacts(), network(), State="degraded", StateReason=reason)
    assert found["firewall"] == f"{problem}: {command}"


def mailcow(_: tuple[Network, ...]) -> HostFacts:
    """A host with one uplink, and the bridge of a network without IPv6."""
    return HostFacts(interfaces=("br-mailcow", "br-x", "eth0"))


@pytest.mark.parametrize("ports", [(), ("veth0123456",)], ids=["empty", "used"])
def test_the_bridge_of_a_network_without_ipv6_makes_no_router(
    faults: FaultsOf, tmp_path: Path, ports: tuple[str, ...]
) -> None:
    bridge(tmp_path, "br-mailcow", *ports)
    assert "firewall" not in faults(mailcow, network())


def test_the_bridge_of_a_container_makes_no_router_whatever_the_state(
    faults: FaultsOf, tmp_path: Path
) -> None:
    bridge(tmp_path, "br-mailcow", "veth0123456")
    changed = {"State": "degraded", "StateReason": "another fault: repair it"}
    assert "firewall" not in faults(mailcow, network(), **changed)


def test_a_router_between_an_uplink_and_a_bridge_of_others_is_a_fault(
    faults: FaultsOf, tmp_path: Path
) -> None:
    bridge(tmp_path, "br-mailcow", "eth1")
    changed = {"State": "degraded", "StateReason": "this host routes IPv6 for everyone: do it"}
    assert "between br-mailcow and eth0" in faults(mailcow, network(), **changed)["firewall"]


def test_a_new_router_is_a_fault_before_the_daemon_checks_again(
    faults: FaultsOf, tmp_path: Path
) -> None:
    bridge(tmp_path, "br-mailcow")
    found = faults(lambda _: HostFacts(interfaces=("br-mailcow", "eth0", "wg0")), network())
    assert "between eth0 and wg0" in found["firewall"]
