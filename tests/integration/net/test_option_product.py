"""All combinations of a network's options in one ruleset, and the verdicts for their packets.

One ruleset has all networks, so the test also covers each network beside all others. The tracer
reads the rules back from the kernel and compares the verdicts with the options.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from ipaddress import IPv6Address, IPv6Network
from itertools import product

import pytest

from ipv6natd.firewall import legacy
from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.model import Desired, GatewayMode, Network, Policy
from ipv6natd.netfilter.diff import matches, rewrite_tables
from ipv6natd.netfilter.rules import Backend, Table
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from tests.harness.build import container, endpoint, network, snapshot
from tests.harness.trace import DELIVERED, DROPPED, Fate, Host, Link, Packet, Verdict, trace
from tests.integration.net.test_firewall_contract import legacy_firewall, need_backend, real_host

HOST, HOST_TOO = IPv6Address("2001:db8:1::1"), IPv6Address("2001:db8:1::10")
OUTSIDE = IPv6Address("2001:db8:2::2")
CONTESTED_PORT = 9000
UDP_OFFSET = 10_000
"""The difference between the UDP port and the TCP port of a network."""


def every_network() -> Iterator[Network]:
    both = (True, False)
    options = product(GatewayMode, both, both, both, (None, HOST_TOO), ((), ("ext0",)))
    for number, (mode, icc, masquerade, internal, source, trusted) in enumerate(options, 1):
        yield network(
            name=f"n{number}",
            subnet=f"fd00:{number:x}::/64",
            bridge=f"br{number}",
            gateway_mode=mode,
            icc=icc,
            masquerade=masquerade,
            internal=internal,
            source_address=source,
            trusted_interfaces=trusted,
        )


NETWORKS = {each: 20_000 + number for number, each in enumerate(every_network())}
"""Network -> host port of its first container. The second container publishes no port."""
OTHER_NETWORK = network(name="beside", subnet="fd00:ffff::/64", bridge="beside")
SPECIAL = next(each for each in NETWORKS if each.uses_nat)
TRACED_HOST = Host(
    links=(
        Link(interface="ext0", subnets=(IPv6Network("::/0"),), addresses=(HOST, HOST_TOO)),
        *(
            Link(interface=each.bridge, subnets=each.subnets, addresses=(each.subnets[0][1],))
            for each in (*NETWORKS, OTHER_NETWORK)
        ),
    )
)


@cache
def wanted(userland_proxy: bool) -> Desired:
    """Each first container publishes the contested port on all addresses, and one container also
    publishes it on one address."""
    facts = []
    for each, port in NETWORKS.items():
        ports = [f"{port}:80", f"{port + UDP_OFFSET}:53/udp", f"{CONTESTED_PORT}:80"]
        ports += [f"[{HOST_TOO}]:{CONTESTED_PORT}:80"] if each is SPECIAL else []
        facts.append(container(name=f"{each.name}-1", on=[each], ports=ports))
        second = endpoint(on=each, address=str(each.subnets[0][3]))
        facts.append(container(name=f"{each.name}-2", on=[second]))
    everything = snapshot(*NETWORKS, OTHER_NETWORK, *facts, userland_proxy=userland_proxy)
    return desired(replace(everything, host_addresses=frozenset({HOST, HOST_TOO})), Policy())


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The text of the kernel's tables."""

    proxy: bool
    text: str

    def asked(
        self, source: IPv6Address, to: IPv6Address, port: int, in_interface: str, kind: str = "tcp"
    ) -> Verdict:
        sent = Packet(
            source=source, destination=to, port=port, in_interface=in_interface, protocol=kind
        )
        return trace(self.text, sent, TRACED_HOST)

    def outside(self, to: IPv6Address, port: int, kind: str = "tcp") -> Verdict:
        return self.asked(OUTSIDE, to, port, "ext0", kind)


@pytest.fixture(params=["nft", "legacy"])
def backend(request: pytest.FixtureRequest) -> Backend:
    made = Backend(request.param)
    need_backend(made)
    return made


@pytest.fixture(params=[True, False], ids=["proxy", "noproxy"])
def loaded(
    request: pytest.FixtureRequest,
    backend: Backend,
    namespace: str,
    xtables_lock: object,
    monkeypatch: pytest.MonkeyPatch,
) -> Loaded:
    assert namespace
    assert xtables_lock
    rules = ruleset(wanted(request.param))
    # On legacy, build all rules in this process: the default limit would select the restore tool.
    monkeypatch.setattr(legacy, "MAX_RULES_IN_PROCESS", 100_000)
    firewall = RestoreFirewall(backend) if backend is Backend.NFT else legacy_firewall()
    changes = rewrite_tables(firewall.read(), rules)
    for change in changes:
        firewall.write(change)
    assert all(matches(rules.table(table), firewall.read()[table]) for table in Table)
    return Loaded(proxy=request.param, text=real_host(firewall).dump())


def forwarded(to: IPv6Address, port: int, source: IPv6Address) -> Verdict:
    return Verdict(Fate.FORWARDED, to, port, source)


def test_packet_verdicts_match_the_options_of_each_network(loaded: Loaded) -> None:
    for each, port in NETWORKS.items():
        gateway, first, second = (each.subnets[0][number] for number in (1, 2, 3))
        unprotected = each.gateway_mode is GatewayMode.NAT_UNPROTECTED
        routed = each.gateway_mode is GatewayMode.ROUTED
        direct = forwarded(first, 80, OUTSIDE)
        with_port = loaded.outside(HOST, port), loaded.outside(HOST, port + UDP_OFFSET, "udp")
        if each.uses_nat:
            assert with_port == (direct, forwarded(first, 53, OUTSIDE)), each
        else:
            assert with_port == (DELIVERED, DELIVERED), each
        opened = not each.closed and (unprotected or routed or bool(each.trusted_interfaces))
        assert loaded.outside(first, 80) == (direct if opened else DROPPED), each
        anything = forwarded(first, 81, OUTSIDE) if unprotected and not each.closed else DROPPED
        assert loaded.outside(first, 81) == anything, each
        # A neighbour connects to the container's own address and to the published port.
        beside = forwarded(first, 80, second) if each.icc else DROPPED
        assert loaded.asked(second, first, 80, each.bridge) == beside, each
        hairpin = DELIVERED
        if each.uses_nat and not loaded.proxy:
            hairpin = forwarded(first, 80, each.source_address or gateway)
        assert loaded.asked(second, HOST, port, each.bridge) == hairpin, each
        # Outgoing packets.
        seen = second
        if each.uses_nat and each.masquerade:
            seen = each.source_address or HOST
        out = DROPPED if each.closed else forwarded(OUTSIDE, 7, seen)
        assert loaded.asked(second, OUTSIDE, 7, each.bridge) == out, each
        # A container of another network with a route, and a forged source on the external link.
        stranger = OTHER_NETWORK.subnets[0][2]
        other = loaded.asked(stranger, first, 80, OTHER_NETWORK.bridge)
        open_to_all = not each.closed and (unprotected or routed)
        assert (other.fate is Fate.FORWARDED) == open_to_all, each
        assert loaded.asked(second, first, 80, "ext0") == DROPPED, each
        assert loaded.asked(second, HOST, port, "ext0").fate is not Fate.FORWARDED, each


def test_contested_port_is_mapped_once_per_binding_address(loaded: Loaded) -> None:
    mappings = [each for each in wanted(loaded.proxy).mappings if each.host_port == CONTESTED_PORT]
    special, general = mappings
    assert special.network_name == SPECIAL.name
    assert loaded.outside(HOST_TOO, CONTESTED_PORT).address == special.container_address
    assert loaded.outside(HOST, CONTESTED_PORT).address == general.container_address
    dnats = [line for line in loaded.text.splitlines() if f"--dport {CONTESTED_PORT} " in line]
    assert sum("-j DNAT" in line for line in dnats) == 2
