"""The signals for the changes of a sync: one PropertiesChanged, and a bounded number of others."""

from __future__ import annotations

from ipv6natd.dbus.connection import Connection
from ipv6natd.dbus.objects import MANAGER, PATH, PROPERTIES
from ipv6natd.dbus.values import variants
from ipv6natd.model import mapping_changes
from ipv6natd.report.status import Status, mapping_row, properties

MAX_SIGNALS = 50
"""MappingAdded and MappingRemoved together, for one sync."""


def emit(connection: Connection, old: Status, new: Status, drift: tuple[str, ...]) -> None:
    """Send the signals for the changes from `old` to `new`; `drift` names the repaired tables."""
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
    signals = [("MappingRemoved", mapping, old) for mapping in removed[:MAX_SIGNALS]]
    signals += [("MappingAdded", mapping, new) for mapping in added[:MAX_SIGNALS]]
    for member, mapping, status in signals[:MAX_SIGNALS]:
        row = variants(mapping_row(mapping, status.since))
        connection.emit(PATH, MANAGER, member, "a{sv}", row)
    if old.findings != new.findings:
        connection.emit(PATH, MANAGER, "FindingsChanged", "")
    if drift:
        connection.emit(PATH, MANAGER, "DriftRepaired", "a{sv}", variants({"Tables": drift}))
    if old.last_sync != new.last_sync:
        counts = {"MappingsAdded": len(added), "MappingsRemoved": len(removed)}
        details = variants(counts | {"State": new.state})
        connection.emit(PATH, MANAGER, "Synced", "ta{sv}", new.generation, details)
