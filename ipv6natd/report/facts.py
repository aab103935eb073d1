"""The facts that decide about rules as JSON, for a report: from them follow all decisions.

Pure. The names are those of the fields in `model`; the test suite reads such a text again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping as Map
from dataclasses import fields, is_dataclass
from typing import Any

from ipv6natd.model import Policy, Snapshot


def facts_text(snapshot: Snapshot, policy: Policy) -> str:
    """Both as one JSON object, `{"snapshot": {...}, "policy": {...}}`."""
    return json.dumps({"snapshot": _plain(snapshot), "policy": _plain(policy)})


def _plain(value: Any) -> Any:
    """The value as JSON has it. Addresses, networks and the words of enumerations are strings, and
    a dictionary is a list of pairs."""
    if is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Map):
        return [[_plain(key), _plain(item)] for key, item in value.items()]
    if isinstance(value, frozenset):
        return sorted(map(_plain, value))
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, bool | int) else str(value)
