"""The objects of org.ipv6natd1: their paths and interfaces, and what Introspect says of them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from xml.etree import ElementTree

NAME = "org.ipv6natd1"
PATH = "/org/ipv6natd1"
MANAGER = "org.ipv6natd1.Manager"
PROPERTIES = "org.freedesktop.DBus.Properties"
INTROSPECTABLE = "org.freedesktop.DBus.Introspectable"
PEER = "org.freedesktop.DBus.Peer"
LOG_PATH = "/org/freedesktop/LogControl1"
LOG = "org.freedesktop.LogControl1"

NODE = (INTROSPECTABLE, PEER)
SERVED = {
    "/": NODE,
    "/org": NODE,
    PATH: (MANAGER, PROPERTIES, *NODE),
    "/org/freedesktop": NODE,
    LOG_PATH: (LOG, PROPERTIES, *NODE),
}
"""The interfaces at each path; a call without interface means the first that has the member."""


@cache
def introspection(path: str) -> str:
    """What Introspect answers: a file of dbus/ word for word, or where the way goes on."""
    if path == PATH:
        return _xml(NAME)
    if path == LOG_PATH:
        return _xml(LOG)
    standard = ElementTree.fromstring(_xml(NAME)).iter("interface")
    node = ElementTree.Element("node")
    node.extend(each for each in standard if each.get("name") in SERVED[path])
    above = path.rstrip("/") + "/"
    for name in sorted(
        {
            each.removeprefix(above).partition("/")[0]
            for each in SERVED
            if each.startswith(above) and each != path
        }
    ):
        ElementTree.SubElement(node, "node", name=name)
    ElementTree.indent(node)
    return ElementTree.tostring(node, encoding="unicode") + "\n"


def _xml(name: str) -> str:
    """The file in the package or, in a checkout, in dbus/."""
    package, checkout = Path(__file__).parents[1:3]
    places = (package / f"{name}.xml", checkout / "dbus" / f"{name}.xml")
    return next((each for each in places if each.exists()), places[0]).read_text("utf-8")
