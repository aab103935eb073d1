"""What a sync changed, as signals: one PropertiesChanged, and a bounded number of the others."""

from __future__ import annotations

from ipv6natd.bus import Connection
from ipv6natd.dbus_objects import MANAGER, PATH, PROPERTIES
from ipv6natd.dbus_values import variants
from ipv6natd.model import Mapping
from ipv6natd.status import Row, Status, mapping_id, mapping_row, properties

MAX_SIGNALS = 50
"""MappingAdded and MappingRemoved of one sync, together."""


def emit(connection: Connection, old: Status, new: Status, drift: Row | None) -> None:
    """Tell whoever listens how `old` became `new`."""
    before = properties(old)
    changed = {name: value for name, value in properties(new).items() if before[name] != value}
    changed.pop("Version", None)
    if changed:
        announced = variants(changed)
        signature = "sa{sv}as"
        connection.emit(PATH, PROPERTIES, "PropertiesChanged", signature, MANAGER, announced, [])
    gone, come = _difference(old, new)
    signals = [("MappingRemoved", _mapping_row(each, old)) for each in gone[:MAX_SIGNALS]]
    signals += [("MappingAdded", _mapping_row(each, new)) for each in come[:MAX_SIGNALS]]
    for member, row in signals[:MAX_SIGNALS]:
        connection.emit(PATH, MANAGER, member, "a{sv}", variants(row))
    if drift is not None:
        connection.emit(PATH, MANAGER, "DriftRepaired", "a{sv}", variants(drift))
    if old.last_sync != new.last_sync:
        details: Row = {
            "MappingsAdded": ("u", len(come)),
            "MappingsRemoved": ("u", len(gone)),
            "State": ("s", new.state.value),
        }
        connection.emit(PATH, MANAGER, "Synced", "ta{sv}", new.generation, variants(details))


def _difference(before: Status, after: Status) -> tuple[list[Mapping], list[Mapping]]:
    """The mappings that went and those that came, in order."""
    if before.generation == after.generation:
        return [], []
    # Both are sorted and nearly equal, and comparing is cheaper than hashing: cut off both ends.
    old, new = before.mappings, after.mappings
    shorter = min(len(old), len(new))
    first = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    shorter -= first
    last = next((i for i in range(shorter) if old[-1 - i] != new[-1 - i]), shorter)
    old, new = old[first : len(old) - last], new[first : len(new) - last]
    gone, come = set(old), set(new)
    return [each for each in old if each not in come], [each for each in new if each not in gone]


def _mapping_row(mapping: Mapping, status: Status) -> Row:
    return mapping_row(mapping, status.since.get(mapping_id(mapping), 0))
