"""org.ipv6natd1(5) and the service agree: members, fields, actions, errors, examples."""

from __future__ import annotations

import re
import sys
from xml.etree import ElementTree

import pytest

from ipv6natd.dbus import connection as bus
from ipv6natd.dbus import limits as dbus_limits
from ipv6natd.dbus import lists as dbus_lists
from ipv6natd.dbus import polkit
from ipv6natd.dbus import signals as dbus_signals
from ipv6natd.dbus.members import METHODS
from ipv6natd.dbus.objects import LOG_CONTROL, LOG_CONTROL_PATH, MANAGER, PATH, introspection
from ipv6natd.dbus.polkit import Action
from ipv6natd.dbus.values import SIGNATURES
from ipv6natd.dbus.wire import MAX_NO_REPLY_CALLS
from ipv6natd.netfilter.docker_rules import Leftover
from ipv6natd.report.status import Row, bus_fields, finding_row, mapping_row, network_row
from tests import ROOT
from tests.harness.needs import need
from tests.integration.bus.conftest import Bus, FakeSource, command, mapping, run, serving, status

PAGE = (ROOT / "man" / "org.ipv6natd1.5").read_text()
SIGNATURE = r"(?:as|aa\{sv\}|[sqtub])"


def section(name: str) -> str:
    """The text of a section of the page."""
    return PAGE.partition(f"\n.Sh {name}\n")[2].partition("\n.Sh ")[0]


def members(path: str, interface: str, kind: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(introspection(path))
    (found,) = (element for element in root.iter("interface") if element.get("name") == interface)
    return found.findall(kind)


def signature_of(member: ElementTree.Element) -> str:
    """ "Explain(s asked) -> aa{sv} explanations"."""
    args = member.findall("arg")
    into, out = (
        ", ".join(
            f"{arg.get('type')} {arg.get('name')}" for arg in args if direction_of(arg) == direction
        )
        for direction in ("in", "out")
    )
    return f"{member.get('name')}({into})" + (f" -> {out}" if out else "")


def direction_of(arg: ElementTree.Element) -> str:
    return arg.get("direction", "in")


def items(text: str) -> dict[str, str]:
    """Member -> its list item, with nested lists."""
    parts = re.split(r"^\.It Ic (\w+)\(.*$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_documented_limits_match_the_sources() -> None:
    limits = " ".join(section("LIMITS").split())
    for words in (
        f"{dbus_limits.MAX_CALLS_OF_SENDER} calls of one connection",
        f"{dbus_limits.MAX_CALLS_OF_USER} of one user",
        f"{dbus_limits.MAX_UNREAD_BYTES >> 20} MiB of answers",
        f"{dbus_limits.MAX_UNREAD_BYTES_FOR_FULL_SIGNALS >> 20} MiB of answers and signals",
        f"signals every {dbus_signals.CROWDED_INTERVAL:g} s",
        f"Above {dbus_limits.MAX_UNREAD_BYTES_FOR_SIGNALS >> 20} MiB, it sends no signals",
        f"{dbus_limits.MAX_UNREAD_BYTES_FOR_ERRORS >> 20} MiB of unread answers",
        f"{dbus_lists.MAX_REPLY_BYTES >> 20} MiB in one answer",
        f"{dbus_limits.MAX_CALLS_OF_USERS} of all users",
        f"{bus.MAX_MESSAGE >> 10} KiB in one call",
        f"{bus.MAX_ARRAYS >> 10} KiB in its arrays",
        f"{polkit.MAX_DIALOGS_OF_USER} dialogs for a password of one user",
        f"{polkit.MAX_DIALOGS} in all",
        f"{MAX_NO_REPLY_CALLS} calls in a second that want no answer",
        f"they share {dbus_limits.MAX_UNIDENTIFIED_BYTES >> 20} MiB",
    ):
        assert words in limits


@pytest.mark.parametrize(("kind", "name"), [("method", "METHODS"), ("signal", "SIGNALS")])
def test_documented_methods_and_signals_match_the_xml(kind: str, name: str) -> None:
    documented = re.findall(r"^\.It Ic (\w+\(.*)$", section(name), re.MULTILINE)
    assert sorted(documented) == sorted(
        signature_of(member) for member in members(PATH, MANAGER, kind)
    )


@pytest.mark.parametrize(
    ("path", "interface", "name"),
    [(PATH, MANAGER, "PROPERTIES"), (LOG_CONTROL_PATH, LOG_CONTROL, "THE LOG")],
)
def test_documented_properties_match_the_xml(path: str, interface: str, name: str) -> None:
    documented = re.findall(r"^\.It Va (.*)$", section(name), re.MULTILINE)
    served = [f"{it.get('name')} {it.get('type')}" for it in members(path, interface, "property")]
    assert documented == served


def comment_fields() -> dict[str, set[tuple[str, str]]]:
    """Member -> the fields, with types, in the comment before it."""
    pattern = r'<!--((?:(?!-->).)*)-->\s*<(?:method|signal) name="(\w+)"'
    return {
        member: set(re.findall(rf"\b([A-Z]\w+) ({SIGNATURE})(?=[\s,.():;])", comment))
        for comment, member in re.findall(pattern, introspection(PATH), re.DOTALL)
    }


def test_documented_fields_match_the_xml_comments() -> None:
    page = items(section("METHODS")) | items(section("SIGNALS"))
    for member, fields in comment_fields().items():
        assert set(re.findall(rf"Va (\w+) ({SIGNATURE})", page[member])) == fields, member


def test_fields_in_xml_comments_match_the_rows() -> None:
    now = status(mapping())
    leftover = Leftover(variant="nft", table="nat", chain="DOCKER", rule="-j X")
    rows: dict[str, Row] = {
        "ListMappings": mapping_row(now.mappings[0], {}),
        "ListNetworks": network_row(now.networks[0]),
        "ListSkipped": now.skipped[0],
        "ListFindings": finding_row(now.findings[0]),
        "ListLeftovers": leftover,
    }
    for member, row in rows.items():
        assert comment_fields()[member] == {
            (name, SIGNATURES.get(name, "s")) for name in bus_fields(row)
        }


def test_documented_action_of_each_method_matches_the_sources() -> None:
    for member, text in items(section("METHODS")).items():
        (action,) = re.findall(r"^Action:\n\.Li (\S+) \.$", text, re.MULTILINE)
        assert action == METHODS[MANAGER, member].action


def test_documented_actions_and_errors_match_the_sources() -> None:
    named = re.findall(r"^\.It Li (\S+)$", section("POLKIT ACTIONS"), re.MULTILINE)
    assert named == [action.value for action in Action]
    package = ROOT / "ipv6natd"
    sources = {path.relative_to(package): path.read_text() for path in package.rglob("*.py")}
    raised = set(re.findall(r"org\.ipv6natd1\.Error\.\w+", "".join(sources.values())))
    errors = section("NAMES OF ERRORS")
    assert sorted(re.findall(r"^\.It Li (\S+)$", errors, re.MULTILINE)) == sorted(raised)
    asking = {"connection.py", "wire.py", "firewalld.py"}
    serving_ = [
        text
        for path, text in sources.items()
        if path.is_relative_to("dbus") and path.name not in asking
    ]
    standard = set(re.findall(r'raise BusError\(ERROR \+ "(\w+)"', "".join(serving_)))
    assert standard - {"NameExists"} <= set(re.findall(r"^\.Li (\w+)", errors, re.MULTILINE))


def example_commands() -> list[str]:
    """The examples as commands."""
    blocks = re.findall(r"^\.Bd .*?\n(.*?)^\.Ed$", section("EXAMPLES"), re.DOTALL | re.MULTILINE)
    return [block.replace(r"\e", "\\") for block in blocks]


def test_documented_examples_work(bus: Bus) -> None:
    need("busctl")
    busctl, _gdbus, python = example_commands()

    async def body() -> None:
        async with serving(bus, FakeSource(status(mapping(80, name="web")))):
            code, out, err = await command(bus, "sh", "-ec", busctl)
            assert (code, err) == (0, "")
            assert '"data" : 8080' in out
            if sys.version_info >= (3, 15):
                return  # The library cannot be imported there, as the page says.
            ignoring = ("-W", "ignore")  # the library is older than some Pythons
            code, out, err = await command(bus, sys.executable, *ignoring, "-c", python)
            assert (code, out, err) == (0, "8080 web\n", "")

    run(body())
