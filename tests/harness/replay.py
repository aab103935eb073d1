"""Reads the report of `ipv6natctl report`: its facts give the same decisions and rules again."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping as Map
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

from ipv6natd.model import Desired, Policy, Snapshot
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from tests.harness.trace import Host, Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """The facts of a report, and what follows from them here."""

    snapshot: Snapshot
    policy: Policy

    @property
    def decisions(self) -> Desired:
        return desired(self.snapshot, self.policy)

    @property
    def rules(self) -> str:
        return format_ruleset(ruleset(self.decisions))

    def host(self, interface: str, *addresses: IPv6Address) -> Host:
        """The host for the tracer: its networks, and an uplink with these addresses."""
        uplink = Link(interface=interface, subnets=(IPv6Network("::/0"),), addresses=addresses)
        bridges = [
            Link(interface=network.bridge, subnets=network.subnets, addresses=(network.gateway,))
            for network in self.decisions.networks
            if network.gateway is not None
        ]
        return Host(links=(uplink, *bridges))


def replay(report: Map[str, Any]) -> Replay:
    """The facts of a report. Raises ValueError or KeyError if it is of another version."""
    facts = report["Facts"]
    return Replay(
        snapshot=_value(Snapshot, facts["snapshot"]), policy=_value(Policy, facts["policy"])
    )


def _value(wanted: Any, plain: Any) -> Any:
    """The value of a type from its JSON, the inverse of ipv6natd.report.facts."""
    origin, inside = typing.get_origin(wanted), typing.get_args(wanted)
    if origin in (types.UnionType, typing.Union):
        if plain is None:
            return None
        kinds = [kind for kind in inside if kind is not type(None)]
        return ip_address(plain) if len(kinds) > 1 else _value(kinds[0], plain)
    if origin is tuple and inside[1:] == (...,):
        return tuple(_value(inside[0], item) for item in plain)
    if origin is tuple:
        return tuple(_value(kind, item) for kind, item in zip(inside, plain, strict=True))
    if origin is frozenset:
        return frozenset(_value(inside[0], item) for item in plain)
    if origin is not None:
        return {_value(inside[0], key): _value(inside[1], item) for key, item in plain}
    if is_dataclass(wanted):
        hints = typing.get_type_hints(wanted)
        values = {item.name: _value(hints[item.name], plain[item.name]) for item in fields(wanted)}
        return typing.cast("type[Any]", wanted)(**values)
    if isinstance(wanted, type) and issubclass(
        wanted, Enum | IPv4Address | IPv6Address | IPv6Network
    ):
        return wanted(plain)
    assert isinstance(plain, wanted)
    return plain
