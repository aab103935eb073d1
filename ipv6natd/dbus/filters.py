"""Which mappings somebody asks for: the fields of FindMappings, and what each one means."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Mapping as Map
from typing import Any

from ipv6natd.model import Mapping
from ipv6natd.report.status import mapping_state

LEAST_ID = 12
"""Characters of an id that Docker itself shows."""


class FilterError(ValueError):
    """A sentence that says what would be a filter."""


def _is(given: str, name: str, id_: str) -> bool:
    return given == name or (len(given) >= LEAST_ID and id_.startswith(given))


_FIELDS: dict[str, tuple[type, Callable[[Mapping, Any], bool]]] = {
    "Container": (str, lambda it, given: _is(given, it.container_name, it.container_id)),
    "Network": (str, lambda it, given: _is(given, it.network_name, it.network_id)),
    "Port": (int, lambda it, given: it.host_port <= given <= it.host_port_end),
    "Protocol": (str, lambda it, given: given == it.protocol),
    "State": (str, lambda it, given: given == mapping_state(it)),
}


def matching(mappings: Iterable[Mapping], wanted: Map[str, Any]) -> tuple[Mapping, ...]:
    """The mappings for which every field holds. Raises FilterError for one that cannot be."""
    tests = []
    for name, given in wanted.items():
        if name not in _FIELDS:
            raise FilterError(f"no filter is called {name!r}; there are {', '.join(_FIELDS)}")
        type_, holds = _FIELDS[name]
        if type(given) is not type_:
            kind = {str: "a string", int: "a whole number"}[type_]
            raise FilterError(f"the filter {name} is {kind}, not {given!r}")
        tests.append((holds, given))
    return tuple(each for each in mappings if all(holds(each, given) for holds, given in tests))
