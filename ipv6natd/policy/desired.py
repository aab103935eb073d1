"""Snapshot -> Desired: which port belongs to whom, and what is skipped and why.

Every decision about who may be reached how is made in the core; the shell makes none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from itertools import compress
from operator import itemgetter

from ipv6natd.model import (
    Container,
    Desired,
    EngineRules,
    ManagedBy,
    Mapping,
    Network,
    Policy,
    Protocol,
    Refused,
    Skipped,
    Snapshot,
    spans,
)
from ipv6natd.policy.cache import Remembered
from ipv6natd.policy.networks import managed, network_order
from ipv6natd.policy.port_bindings import (
    Claim,
    Run,
    Runs,
    Wants,
    in_step,
    mapping,
    merged,
    next_port,
    on_loopback,
    refused,
    settled,
    wants,
)

MAX_WARNINGS = 5
"""Ports that are named for one network."""
_LOOPBACK = (
    "[::1] cannot be forwarded to a container and the engine runs without its userland proxy; "
    "bind to 127.0.0.1 or to `::`"
)
_LEFT_OUT = (
    "the engine keeps IPv6 rules for other networks and none for this one, so ipv6natd does; to "
    "have it done by the engine: systemctl restart docker"
)
_UNTRACKED = (
    "this kernel cannot forward SCTP: its conntrack does not know it; run a kernel that is built "
    "with CONFIG_NF_CT_PROTO_SCTP"
)


@dataclass(frozen=True, slots=True)
class Memory:
    """What parts of the picture came to, for the next one, in which most of it is the same."""

    wants: Remembered[Container, Wants] = field(default_factory=Remembered)
    runs: Runs = field(default_factory=lambda: Runs(in_step))
    mappings: Remembered[Run, Mapping] = field(default_factory=Remembered)
    rows: Runs = field(default_factory=lambda: Runs(next_port))
    refused: Remembered[Run, Refused] = field(default_factory=Remembered)


def desired(snapshot: Snapshot, policy: Policy, memory: Memory | None = None) -> Desired:
    """What should hold, given what is.

    The order of everything in the answer depends on nothing but the facts, so that equal facts
    give equal rules to the byte.
    """
    memory = memory or Memory()
    networks, skipped = managed(snapshot, policy)
    every = sorted(snapshot.networks, key=network_order)
    wanted = memory.wants.all(
        snapshot.containers,
        lambda container: wants(container, every, networks, policy),
        basis=(every, networks, policy),
    )
    claims, beaten = settled([claim for each in wanted for claim in each.claims])
    engine_writes = _engine_writes(claims, snapshot)
    if engine_writes:
        networks = _by_whom(networks, snapshot.engine_rules)
    ours = {each.bridge for each in networks.values() if each.managed_by is ManagedBy.IPV6NATD}
    opened = [each for want in wanted for each in want.opened if each.bridge in ours]
    special = _special(snapshot.containers, wanted)
    skipped += [each for want in special for each in want.skipped] + beaten
    if not snapshot.tracks_sctp:
        sctp = [each.protocol is Protocol.SCTP and each.network.bridge in ours for each in claims]
        skipped += [_skipped(each, _UNTRACKED) for each in compress(claims, sctp)]
        claims = [each for each, lost in zip(claims, sctp, strict=True) if not lost]
    if not snapshot.userland_proxy:
        skipped += [_skipped(each, _LOOPBACK) for each in claims[on_loopback(claims)]]
    forwarded = claims.copy()
    del forwarded[on_loopback(claims)]
    mappings = memory.mappings.all(
        memory.runs.of(forwarded),
        lambda run: mapping(run, networks[run[0].network.id].managed_by),
        basis=ours,
    )
    refusals: list[Refused] = []
    if not snapshot.userland_proxy:
        kept = [each for each in claims if each.network.bridge in ours]
        refusals = memory.refused.all(memory.rows.of(kept), refused)
    warnings = [each for want in special for each in want.warnings]
    warnings += _absent(mappings, snapshot.host_addresses)
    return Desired(
        networks=tuple(_warned(networks, warnings)),
        mappings=tuple(mappings),
        refused=tuple(refusals),
        opened=tuple(merged(opened)),
        proxied=tuple(spans(port for want in wanted for port in want.proxied)),
        skipped=tuple(dict.fromkeys(skipped)),
        userland_proxy=snapshot.userland_proxy,
        accept_fwmark=policy.accept_fwmark,
        engine_writes=engine_writes,
    )


def _special(containers: Iterable[Container], wanted: list[Wants]) -> list[Wants]:
    """Those of which there is something to tell, in the order of the containers' names."""
    told = [
        (container.name, container.id, want)
        for container, want in zip(containers, wanted, strict=True)
        if want.skipped or want.warnings
    ]
    return [want for _, _, want in sorted(told, key=itemgetter(0, 1))]


def together(old: Desired, new: Desired) -> Desired:
    """`new`, and the networks of `old` besides: for the moment in which both have rules in nat."""
    bridges = {each.bridge for each in new.networks}
    kept = tuple(each for each in old.networks if each.bridge not in bridges)
    if not kept:
        return new
    networks = sorted((*new.networks, *kept), key=network_order)
    return replace(new, networks=tuple(networks))


def _engine_writes(claims: list[Claim], snapshot: Snapshot) -> bool:
    """Whether the engine keeps IPv6 rules, as far as anything tells.

    An engine that was switched off leaves its rules behind, so rules alone prove nothing. It
    forwards a port before inspect shows it: a port without its rule tells that nobody keeps the
    others either.
    """
    engine, rules = snapshot.engine, snapshot.engine_rules
    if engine is None or not engine.may_write_ipv6_rules:
        return False
    return engine.ip6tables is not None or all(
        (claim.protocol, claim.host_port) in rules.ports
        for claim in claims
        if claim.network.bridge in rules.bridges
    )


def _by_whom(networks: dict[str, Network], rules: EngineRules) -> dict[str, Network]:
    """The networks, each with who writes its rules.

    Beside networks of the engine's there may be one that it failed to write rules for, say because
    the kernel lacked a table when it was made.
    """
    return {
        key: replace(each, managed_by=ManagedBy.ENGINE)
        if each.bridge in rules.bridges
        else replace(each, warnings=(*each.warnings, _LEFT_OUT) if rules.bridges else each.warnings)
        for key, each in networks.items()
    }


def _absent(
    mappings: list[Mapping], own: frozenset[IPv6Address] | None
) -> Iterator[tuple[str, str]]:
    """Bindings to addresses that the host does not have, with their networks' ids.

    Their rules are harmless, and come to life with the address.
    """
    if own is None:
        return
    for each in mappings:
        if not each.wildcard and each.host_address not in own:
            yield (
                each.network_id,
                f"port {each.host_port}/{each.protocol} of container '{each.container_name}' is "
                f"bound to {each.host_address}, which is no address of this host now",
            )


def _warned(networks: dict[str, Network], warnings: list[tuple[str, str]]) -> Iterator[Network]:
    """The networks, each with what there is to say of its ports."""
    said: dict[str, list[str]] = {}
    for network_id, warning in warnings:
        said.setdefault(network_id, []).append(warning)
    for each in networks.values():
        more = said.get(each.id, [])[:MAX_WARNINGS]
        yield replace(each, warnings=(*each.warnings, *more)) if more else each


def _skipped(claim: Claim, reason: str) -> Skipped:
    return Skipped(
        container_name=claim.container.name,
        network=claim.network.name,
        port=f"{claim.container_port}/{claim.protocol}",
        reason=reason,
    )
