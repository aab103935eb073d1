"""Docker's own nft table: JSON of `nft -j list table ip6 docker-bridges` -> EngineRules.

Docker 29 writes it with firewall-backend=nftables. Its chains of a bridge are reached by a jump to
a name that ends with the bridge, and its DNAT rules match a destination port. The rest of a rule,
such as counters and comments, may change with the version.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from collections.abc import Mapping as Map
from itertools import product
from typing import Any

from ipv6natd.model import EngineRules, Protocol

NFT_TABLE = ("ip6", "docker-bridges")
"""Family and name of the table."""
_BRIDGE_CHAINS = ("filter-forward-in__", "filter-forward-out__")


def nft_engine_rules(text: str) -> EngineRules:
    """The rules in the output; "" for a missing table. Raises ValueError if it is not of nft.

    It is not complete if a DNAT rule has a port that cannot be read.
    """
    if not text:
        return EngineRules()
    try:
        document = json.loads(text)
    except RecursionError:
        raise ValueError("too deeply nested") from None
    objects = document.get("nftables") if isinstance(document, dict) else None
    if not isinstance(objects, list):
        raise ValueError("not the output of nft -j")
    maps = {
        found["name"]: found.get("elem")
        for entry in objects
        if isinstance(entry, dict) and isinstance(found := entry.get("map"), dict)
        if isinstance(found.get("name"), str)
    }
    rules = [entry["rule"] for entry in objects if isinstance(entry, dict) and "rule" in entry]
    ports = [set(_dnat_ports(rule, maps)) for rule in rules if _has_dnat(rule)]
    return EngineRules(
        bridges=frozenset(_bridges(objects)),
        ports=frozenset((protocol, port) for protocol, port in frozenset().union(*ports) if port),
        complete=all(of_rule and all(port for _, port in of_rule) for of_rule in ports),
    )


def _nodes(value: Any) -> Iterator[Map[str, Any]]:
    """All objects in a JSON value."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case dict() as node:
                yield node
                waiting.extend(node.values())
            case list() as values:
                waiting.extend(values)


def _bridges(objects: Any) -> Iterator[str]:
    for node in _nodes(objects):
        match node:
            case {"jump": {"target": str(target)}} | {"goto": {"target": str(target)}}:
                for prefix in _BRIDGE_CHAINS:
                    if target.startswith(prefix):
                        yield target.removeprefix(prefix)


def _has_dnat(rule: Any) -> bool:
    return any("dnat" in node for node in _nodes(rule))


def _dnat_ports(rule: Any, maps: Map[str, Any]) -> Iterator[tuple[Protocol, int]]:
    """The ports of a DNAT rule: of its condition, or the keys of a map; 0 for what cannot be
    read."""
    for node in _nodes(rule):
        match node:
            case {"match": {"left": {"payload": {"protocol": protocol, "field": "dport"}}, **more}}:
                # Another comparison, such as "!=", says which ports it is not.
                values = [more.get("right")] if more.get("op") == "==" else [None]
            case {"key": {"payload": {"protocol": protocol, "field": "dport"}}, "data": data}:
                values = _map_keys(data, maps)
            case _:
                continue
        protocols = Protocol if protocol == "th" else [p for p in Protocol if p == protocol]
        yield from product(protocols, _port_numbers(values))


def _map_keys(data: Any, maps: Map[str, Any]) -> list[Any]:
    """The keys of a map in a rule, or of the map that it names; None for what cannot be read."""
    match data:
        case str():
            pairs = maps.get(data.removeprefix("@"))
        case {"set": pairs}:
            pass
        case _:
            return [None]
    if not isinstance(pairs, list):
        return [None]
    return [pair[0] if isinstance(pair, list) and pair else None for pair in pairs]


def _port_numbers(values: Iterable[Any]) -> Iterator[int]:
    """The ports in the output of nft; 0 for what cannot be read."""
    for value in values:
        match value:
            case int() if 0 < value <= 65535:
                yield value
            case {"range": [int(first), int(last)]} if 0 < first <= last <= 65535:
                yield from range(first, last + 1)
            case {"set": list(more)}:
                yield from _port_numbers(more)
            case {"elem": {"val": more}}:
                yield from _port_numbers([more])
            case _:
                yield 0
