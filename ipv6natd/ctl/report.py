"""`report`: one text for a bug report, in which names and public addresses are replaced."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import chain
from pathlib import Path
from typing import Any

from ipv6natd import __version__
from ipv6natd.ctl.client import DaemonClient, Options, Result, is_not_running
from ipv6natd.dbus.connection import BusError
from ipv6natd.system.process import output_of
from ipv6natd.system.terminal import printable

FORMAT = 1
"""The version of the report's form."""
JOURNAL_LINES = 200
_TOOL_TIMEOUT = 30.0
_LISTS = ("ListFindings", "ListNetworks", "ListMappings", "ListSkipped")
_NAME_FIELDS = {"IPV6NATD_CONTAINER": "container", "IPV6NATD_NETWORK": "network"}
"""Field of the journal -> what it names."""
_OS_NAME = re.compile(r'^PRETTY_NAME="?([^"\n]*)', re.MULTILINE)
_ADDRESS = re.compile(
    r"(?<![0-9A-Za-z:.])(?:[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:(?:\.[0-9]{1,3}){3})?"
    r"|[0-9]{1,3}(?:\.[0-9]{1,3}){3})(?![0-9A-Za-z:])"
)
_REMOTE_ENGINE = re.compile(r"\b(tcp|https?)://[^\s/:\"']+")
_SENTENCES = frozenset(
    (
        *("ContainerName", "Network", "Name", "name", "Text", "Command", "Reason", "Warnings"),
        *("StateReason", "Journal", "warnings", "problem", "problems"),
    )
)
"""The fields that can contain names. Elsewhere a word of a rule could be one by chance."""
_KEPT_NAMES = frozenset({"", "bridge", "host", "none", "docker_gwbridge", "default"})
"""Names that the engine gives itself."""


async def report(daemon: DaemonClient, options: Options) -> Result:
    """The report; without the daemon, what can be read without it."""
    value: dict[str, Any] = {"Format": FORMAT, "Versions": _versions()}
    note = ""
    try:
        for member in _LISTS:
            value[member.removeprefix("List")] = await daemon.call(member)
        value["Status"] = await daemon.properties()
        value["Facts"] = json.loads(await daemon.call("GetFacts"))
        value["Rules"] = await daemon.call("GetRuleset")
    except BusError as error:
        if not is_not_running(error):
            raise
        note = "ipv6natd is not running: the report has less"
    value["Tables"] = _tables(value.get("Status", {}).get("Backend", ""))
    entries = list(_journal())
    value["Journal"] = [str(entry["MESSAGE"]) for entry in entries]
    if "unchanged" not in options.flags:
        value = Replacer(chain(_names(value), _journal_names(entries))).replaced(value)
    elif not note:
        note = "this report has the names of containers and networks, and public addresses"
    return Result(value=value, text=json.dumps(value, indent=1) + "\n", note=note)


def _versions() -> dict[str, str]:
    system = _OS_NAME.search(_text(Path("/etc/os-release")))
    tools = {
        name: output_of(name, "--version", timeout=_TOOL_TIMEOUT) for name in ("ip6tables", "nft")
    }
    return {
        "ipv6natctl": __version__,
        "Python": platform.python_version(),
        "Kernel": platform.release(),
        "Machine": platform.machine(),
        "System": system[1] if system else "",
        **{name: printable(text.strip()) for name, text in tools.items()},
    }


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _tables(backend: str) -> dict[str, str]:
    """The tables of ip6tables and the chains of nft, without the elements of sets. Root alone can
    read them."""
    if os.geteuid() != 0:
        return {}
    save = f"ip6tables-{backend}-save" if backend else "ip6tables-save"
    return {
        save: output_of(save, timeout=_TOOL_TIMEOUT),
        "nft": output_of("nft", "-t", "list", "ruleset", timeout=_TOOL_TIMEOUT),
    }


def _journal() -> Iterator[dict[str, Any]]:
    """The last entries of the service."""
    words = ("--unit=ipv6natd", "--output=json", "--no-pager", "--quiet")
    fields = f"--output-fields=MESSAGE,{','.join(_NAME_FIELDS)}"
    text = output_of(
        "journalctl", *words, fields, f"--lines={JOURNAL_LINES}", timeout=_TOOL_TIMEOUT
    )
    for line in text.splitlines():
        with suppress(ValueError):
            if isinstance(entry := json.loads(line), dict) and "MESSAGE" in entry:
                yield entry


def _journal_names(entries: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """(name, kind) of the entries: the containers and networks may be gone."""
    for entry in entries:
        for name, kind in _NAME_FIELDS.items():
            if isinstance(entry.get(name), str):
                yield entry[name], kind


def _names(value: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(name, what it is the name of) of all containers and networks in the report."""
    for kind, rows, key in (
        ("network", value.get("Networks", ()), "Name"),
        ("network", value.get("Mappings", ()), "Network"),
        ("network", value.get("Skipped", ()), "Network"),
        ("container", value.get("Mappings", ()), "ContainerName"),
        ("container", value.get("Skipped", ()), "ContainerName"),
    ):
        yield from ((row[key], kind) for row in rows)
    snapshot = value.get("Facts", {}).get("snapshot", {})
    yield from ((row["name"], "network") for row in snapshot.get("networks", ()))
    yield from ((row["name"], "container") for row in snapshot.get("containers", ()))


@dataclass(slots=True)
class _Numbered:
    """A new text for each old one, in the order in which they appear."""

    made: Callable[[int], str]
    known: dict[str, str] = field(default_factory=dict)

    def of(self, old: str) -> str:
        """The new text for an old one."""
        return self.known.setdefault(old, self.made(len(self.known) + 1))


class Replacer:
    """Replaces names and public addresses in all texts, the same ones by the same ones.

    Addresses with the same first 64 bits keep that in common, so that subnets and their addresses
    fit. Private addresses stay, and so do those for documentation.
    """

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        self._prefixes = _Numbered(lambda number: f"2001:db8:{number:x}:")
        self._hosts = _Numbered(lambda number: f"{number:x}")
        self._ipv4 = _Numbered(lambda number: f"198.51.{number >> 8 & 255}.{number & 255}")
        # In the order of the names, because the decisions follow this order.
        kinds = {name: kind for name, kind in names if name not in _KEPT_NAMES}
        digits = len(str(len(kinds)))
        self._names = {
            name: f"{kinds[name]}{number:0{digits}}" for number, name in enumerate(sorted(kinds), 1)
        }
        longest_first = sorted(self._names, key=len, reverse=True)
        words = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._name = re.compile(rf"(?<![\w.-])(?:{words})(?![\w-])")

    def replaced(self, value: Any, key: str = "") -> Any:
        """The value of a field with all texts in it replaced; keys stay."""
        if isinstance(value, dict):
            return {name: self.replaced(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self.replaced(item, key) for item in value]
        return self._text(value, key) if isinstance(value, str) else value

    def _text(self, text: str, key: str) -> str:
        text = _REMOTE_ENGINE.sub(r"\1://engine", text)
        text = _ADDRESS.sub(self._address, text)
        if key in _SENTENCES:
            text = self._name.sub(lambda found: self._names[found[0]], text)
        return text

    def _address(self, found: re.Match[str]) -> str:
        try:
            address = ip_address(found[0])
        except ValueError:
            return found[0]  # a time, or the sum of a file
        if not address.is_global or address.is_multicast:
            return found[0]
        if isinstance(address, IPv4Address):
            return self._ipv4.of(str(address))
        return self._ipv6(address)

    def _ipv6(self, address: IPv6Address) -> str:
        prefix = self._prefixes.of(str(int(address) >> 64))
        low = int(address) & (1 << 64) - 1
        return str(IPv6Address(f"{prefix}:{self._hosts.of(str(low)) if low else ''}"))
