"""The signals for the changes of a sync: one PropertiesChanged, and a bounded number of others."""

from __future__ import annotations

from ipv6natd.dbus.connection import Connection
from ipv6natd.dbus.objects import MANAGER, PATH, PROPERTIES
from ipv6natd.dbus.values import variants
from ipv6natd.model import Mapping, mapping_changes
from ipv6natd.report.status import Row, Status, mapping_id, mapping_row, properties

MAX_SIGNALS = 50
"""MappingAdded and MappingRemoved together, for one sync."""


def emit(connection: Connection, old: Status, new: Status, drift: Row | None) -> None:
    """Send the signals for the changes from `old` to `new`."""
    old_properties = properties(old)
    changed = {
        name: value for name, value in properties(new).items() if old_properties[name] != value
    }
    changed.pop("Version", None)
    if changed:
        announced = variants(changed)
        signature = "sa{sv}as"
        connection.emit(PATH, PROPERTIES, "PropertiesChanged", signature, MANAGER, announced, [])
    removed, added = mapping_changes(old.mappings, new.mappings)
    signals = [("MappingRemoved", _mapping_row(mapping, old)) for mapping in removed[:MAX_SIGNALS]]
    signals += [("MappingAdded", _mapping_row(mapping, new)) for mapping in added[:MAX_SIGNALS]]
    for member, row in signals[:MAX_SIGNALS]:
        connection.emit(PATH, MANAGER, member, "a{sv}", variants(row))
    if drift is not None:
        connection.emit(PATH, MANAGER, "DriftRepaired", "a{sv}", variants(drift))
    if old.last_sync != new.last_sync:
        details: Row = {
            "MappingsAdded": ("u", len(added)),
            "MappingsRemoved": ("u", len(removed)),
            "State": ("s", new.state.value),
        }
        connection.emit(PATH, MANAGER, "Synced", "ta{sv}", new.generation, variants(details))


def _mapping_row(mapping: Mapping, status: Status) -> Row:
    return mapping_row(mapping, status.since.get(mapping_id(mapping), 0))
