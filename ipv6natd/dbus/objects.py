"""The objects of org.ipv6natd1: their paths, interfaces and introspection data."""

from __future__ import annotations

from functools import cache
from importlib import resources
from xml.etree import ElementTree

NAME = "org.ipv6natd1"
PATH = "/org/ipv6natd1"
MANAGER = "org.ipv6natd1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"
LOG_CONTROL_PATH = "/org/freedesktop/LogControl1"
LOG_CONTROL = "org.freedesktop.LogControl1"

NODE_INTERFACES = (INTROSPECTABLE, PEER)
INTERFACES = {
    "/": NODE_INTERFACES,
    "/org": NODE_INTERFACES,
    PATH: (MANAGER, PROPERTIES, *NODE_INTERFACES),
    "/org/freedesktop": NODE_INTERFACES,
    LOG_CONTROL_PATH: (LOG_CONTROL, PROPERTIES, *NODE_INTERFACES),
}
"""Path -> interfaces. A call without an interface means the first interface that has the member."""


@cache
def introspection(path: str) -> str:
    """The reply to Introspect: a file of dbus/ unchanged, or a node that lists its children."""
    if path == PATH:
        return _xml(NAME)
    if path == LOG_CONTROL_PATH:
        return _xml(LOG_CONTROL)
    standard = ElementTree.fromstring(_xml(NAME)).iter("interface")
    node = ElementTree.Element("node")
    node.extend(interface for interface in standard if interface.get("name") in INTERFACES[path])
    prefix = path.rstrip("/") + "/"
    below = {other.removeprefix(prefix) for other in INTERFACES if other.startswith(prefix)}
    for name in sorted({name.partition("/")[0] for name in below} - {""}):
        ElementTree.SubElement(node, "node", name=name)
    ElementTree.indent(node)
    return ElementTree.tostring(node, encoding="unicode") + "\n"


def _xml(name: str) -> str:
    """The text of the file in the package or, in a checkout, in dbus/."""
    package = resources.files("ipv6natd")
    # Not a path: the package may be in a zip archive.
    installed = package.joinpath(f"{name}.xml")
    if installed.is_file():
        return installed.read_text("utf-8")
    return package.joinpath("..", "dbus", f"{name}.xml").read_text("utf-8")
