"""The rows of Trace: what becomes of a packet to a published port, and which rule decides.

Pure. `netfilter.trace` follows the packet; this module words the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv6Address

from ipv6natd.host.nft import BaseChain, ForwardedPacket, blocks, may_block
from ipv6natd.model import ANY, LINK_LOCAL, LOOPBACK, Mapping, Protocol
from ipv6natd.netfilter.docker_rules import is_docker_chain, is_engine_jump
from ipv6natd.netfilter.rules import COMMENT, DOCKER_USER, PREFIX
from ipv6natd.netfilter.trace import Fate, Host, Packet, Step, Tables, Trace, met_rules, trace


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """What decided in one hook."""

    table: str
    hook: str
    chain: str
    rule: str
    verdict: str
    by: str
    """The owner of the rule: ipv6natd, docker, DOCKER-USER, policy or other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One packet, its end, and its way there."""

    protocol: str
    source: str
    interface: str
    """Where the packet comes in; empty for one of the host."""
    host_address: str
    host_port: int
    fate: str
    reason: str
    steps: tuple[StepRow, ...]


def parse_source(text: str) -> IPv6Address:
    """The address from which a packet comes. Raises ValueError, also for a zone that a terminal
    would not show as it is."""
    address = IPv6Address(text)
    if not text.isprintable():
        raise ValueError(f"{text!a} is not an IPv6 address: its zone is unprintable")
    return address


def packets(
    port: int, protocol: str | None, source: IPv6Address, mappings: Iterable[Mapping], host: Host
) -> Iterator[Packet]:
    """A first packet from this source to each host address and protocol of the port; to an address
    of the host if no mapping has it. Raises ValueError without a route to the source."""
    incoming = "" if host.is_local(source) else host.output_interface(source)
    own = host.source_address(incoming or host.output_interface(source))
    targets = {
        (mapping.protocol.value, own if mapping.wildcard else mapping.host_address)
        for mapping in mappings
        if mapping.host_port <= port <= mapping.host_port_end
        and protocol in (None, mapping.protocol)
    }
    for kind, address in sorted(targets) or [(protocol or Protocol.TCP.value, own)]:
        yield Packet(
            source=source,
            destination=address,
            in_interface=incoming,
            protocol=kind,
            port=port,
            mark=None,
        )


def trace_row(packet: Packet, tables: Tables, host: Host, chains: Sequence[BaseChain]) -> TraceRow:
    """Follow the packet through the rules and, if they forward it, through the base chains of nft
    of other programs. Raises ValueError if it has no route."""
    found = _after_nft(trace(tables, packet, host), packet, host, chains)
    return TraceRow(
        protocol=packet.protocol,
        source=str(packet.source),
        interface=packet.in_interface,
        host_address=str(packet.destination),
        host_port=packet.port,
        fate=found.fate,
        reason=_reason(found),
        steps=tuple(map(_step_row, found.steps)),
    )


def other_rules(
    mapping: Mapping, tables: Tables, host: Host, chains: Sequence[BaseChain]
) -> Iterator[StepRow]:
    """The rules of others, also those in DOCKER-USER, that a new connection to the first port of
    the mapping meets before a rule decides, or may meet: it depends on the client. A rule may come
    more than once."""
    arriving = Packet(
        source=ANY,
        destination=ANY,
        any_source=True,
        protocol=mapping.protocol.value,
        port=mapping.host_port,
        mark=None,
    )
    forwarded = replace(
        arriving,
        destination=mapping.container_address,
        port=mapping.container_port,
        original_port=mapping.host_port,
        dnat=True,
        out_interface=mapping.bridge,
    )
    for address in _addresses(mapping, host):
        here = replace(arriving, destination=address)
        for table in ("raw", "nat"):
            yield from _of_others(met_rules(tables, table, "PREROUTING", here, host))
    yield from _of_others(met_rules(tables, "filter", "FORWARD", forwarded, host))
    packet = ForwardedPacket(
        bridge=mapping.bridge, incoming=None, outgoing=mapping.bridge, dnat=True
    )
    for chain in chains:
        if chain.hook == "forward" and may_block(chain, packet):
            yield _step_row(_nft_step(chain, "DROP" if blocks(chain, packet) else "?"))


def _addresses(mapping: Mapping, host: Host) -> list[IPv6Address]:
    """The host addresses of the port."""
    if not mapping.wildcard:
        return [mapping.host_address]
    return [
        address
        for link in host.links
        for address in link.addresses
        if address != LOOPBACK and address not in LINK_LOCAL
    ]


def _of_others(steps: Iterable[Step]) -> Iterator[StepRow]:
    """Rows without the rules of ipv6natd and Docker, and without an end that says nothing."""
    rows = map(_step_row, steps)
    return (row for row in rows if row.by in ("other", DOCKER_USER) and row.rule != "-j RETURN")


def _nft_step(chain: BaseChain, verdict: str) -> Step:
    return Step(f"nft {chain.family} {chain.table}", chain.hook, chain.name, "", verdict)


def _after_nft(found: Trace, packet: Packet, host: Host, chains: Sequence[BaseChain]) -> Trace:
    if found.fate is not Fate.FORWARDED or found.address is None:
        return found
    outgoing = host.output_interface(found.address)
    forwarded = ForwardedPacket(
        bridge=outgoing,
        incoming=packet.in_interface,
        outgoing=outgoing,
        dnat=found.address != packet.destination,
    )
    for chain in chains:
        if chain.hook == "forward" and blocks(chain, forwarded):
            return Trace(fate=Fate.DROPPED, steps=(*found.steps, _nft_step(chain, "DROP")))
    return found


def _reason(found: Trace) -> str:
    last = found.steps[-1] if found.steps else None
    match found.fate:
        case Fate.FORWARDED:
            to = f"[{found.address}]:{found.port}"
            return f"it is forwarded to {to}, with the source {found.source}"
        case Fate.HOST:
            return "it is delivered to the host itself, to a program that listens there or to none"
        case Fate.UNKNOWN:
            assert found.doubt is not None
            return f"it depends on a rule that is not understood here: {_text(found.doubt)}"
    assert last is not None
    return f"it is {found.fate} by {_owner(last)}: {_text(last)}"


def _text(step: Step) -> str:
    if step.table.startswith("nft "):
        return f"chain {step.chain} of {step.table}"
    if step.rule:
        return f"-t {step.table} -A {step.chain} {step.rule}"
    return f"the policy of {step.chain} in the table {step.table}"


def _step_row(step: Step) -> StepRow:
    return StepRow(
        table=step.table,
        hook=step.hook,
        chain=step.chain,
        rule=step.rule,
        verdict=step.verdict,
        by=_owner(step),
    )


def _owner(step: Step) -> str:
    if step.table.startswith("nft "):
        return "other"
    if not step.rule:
        return "policy"
    if step.chain.startswith(PREFIX) or f"--comment {COMMENT} " in step.rule:
        return "ipv6natd"
    if step.chain == DOCKER_USER:
        return DOCKER_USER
    in_forward = step.chain == "FORWARD" and is_engine_jump(step.rule)
    return "docker" if is_docker_chain(step.chain) or in_forward else "other"
