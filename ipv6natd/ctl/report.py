"""`report`: one text for a bug report, in which names and public addresses are replaced."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

from ipv6natd import __version__
from ipv6natd.ctl.client import DaemonClient, Options, Result, is_not_running
from ipv6natd.ctl.replacer import Replacer, engine_hosts, own_hosts
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
    value["Journal"] = [text for entry in entries for text in _field_texts(entry["MESSAGE"])]
    if "unchanged" not in options.flags:
        # A container may have the name of a host, and its own replacement.
        hosts = chain(own_hosts(platform.node()), engine_hosts(value))
        names = chain(hosts, _journal_names(entries), _names(value))
        value = Replacer(names).replaced(value)
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
            yield from ((text, kind) for text in _field_texts(entry.get(name)))


def _field_texts(value: Any) -> list[str]:
    """The texts of a field. journalctl writes a text that is not printable as a list of bytes, and
    several fields of one name as a list."""
    if not isinstance(value, list):
        return [value] if isinstance(value, str) else []
    if all(type(item) is int and 0 <= item < 256 for item in value):
        return [bytes(value).decode(errors="replace")]
    return [text for item in value for text in _field_texts(item)]


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
