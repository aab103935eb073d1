"""Writes small changes of legacy tables with python-iptables, without a process.

Import this module only if the legacy variant was chosen: the import of iptc loads kernel modules.

Only the parts of python-iptables that map to libiptc and the extensions' parsers are used. These
parts are unsafe in a daemon, or wrong in the supported versions:
- `Chain.append_rule` replaces file descriptor 1 of the process by a pipe for a moment. Here entries
  are appended through the table.
- `Rule6.in_interface = …` writes a mask of 0x01 bytes, so that the kernel compares one bit of each
  character. Here the interface is written into the entry.
- `Rule6.tables` opens all five tables for each target, and the kernel creates an opened table.
- An extension rejects a parameter with a longjmp through Python. A Rule is valid by construction,
  so no parameter is rejected.
- Since iptables 1.8.11 an option of an extension has more bytes, in a library of the same version,
  and iptc finds only the first option. Here options are found by their real size.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import iptc
from iptc.ip6tc import ip6t_ip6
from iptc.xtables import NFPROTO_IPV6, XTablesError, xt_option_entry, xtables

from ipv6natd.firewall.backend import FirewallError, MissingTable
from ipv6natd.netfilter.diff import TableChange
from ipv6natd.netfilter.render import format_rule
from ipv6natd.netfilter.rules import DOCKER_USER, LIMIT_INTERFACE, Rule, Table

_CHAIN_NAME_MAX = 28
"""Maximum length of a chain name. libiptc truncates longer names silently."""
_OPTION_SIZE = ctypes.sizeof(xt_option_entry)
"""Bytes of an option in iptc. In newer libraries the last two fields have four more bytes each."""

_OPTION = re.compile(r"(!?) ?(-[sdiop]) (\S+)")
"""An option of a rule that belongs to no match: "!" if it is inverted, its name, its value."""
_TABLES_LOCK = threading.Lock()
"""Held while a table is open: Table6 objects are shared in the process, and have cursors."""


class LibiptcWriter:
    """The extensions of the installed library, and writes with them."""

    def __init__(self) -> None:
        """Raises FirewallError if the library finds no extensions."""
        # Without a reference iptc would drop the object and initialize the extensions again.
        self._extensions = xtables(NFPROTO_IPV6)
        size = _option_size(self._extensions)
        xtables._option_lookup = lambda _, rows, name: _find_option(rows, name, size)

    def write(self, change: TableChange) -> None:
        """See Firewall. The caller holds the xtables lock; `change` removes no jumps."""
        with _open_table(change.table) as table:
            _apply(table, change)
            table.commit()


@contextmanager
def _open_table(name: Table) -> Iterator[Any]:
    """The table as the kernel has it now; changes without a commit are discarded."""
    with _TABLES_LOCK:
        try:
            table = iptc.Table6(str(name), autocommit=False)
            table.refresh()
        except iptc.IPTCError as error:
            text = (
                f"the legacy table {name} cannot be opened: {_error_text(error)}; "
                f"try `modprobe ip6table_{name}`; a kernel without this module needs the nft "
                'variant of ip6tables, and backend = "nft"'
            )
            if "Table does not exist" in text:
                raise MissingTable(text, name) from None
            raise FirewallError(text) from None
        try:
            yield table
        except (iptc.IPTCError, XTablesError, ValueError) as error:
            raise FirewallError(f"legacy table {name}: {_error_text(error)}") from None
        finally:
            # The object has a copy of the whole table.
            table.close()


def _error_text(error: Exception) -> str:
    """The message of libiptc without Python's notation for bytes."""
    return re.sub(r"b'([^']*)'", r"\1", str(error))


def _apply(table: Any, change: TableChange) -> None:
    """The steps in the order of TableChange, on the copy of the table in this process."""
    for name in change.create:
        _create(table, name)
    for name in change.chains:
        if table.is_chain(name):
            table.flush_entries(name)
        else:
            _create(table, name)
    for name, rules in change.chains.items():
        for rule in rules:
            table.append_entry(name, _build_rule(table, rule))
    for insert in reversed([jump for jump in change.insert if jump.first]):
        place = change.place if insert.base == "FORWARD" else 0
        table.insert_entry(insert.base, _build_rule(table, insert.rule), place)
    for insert in change.insert:
        if not insert.first:
            table.append_entry(insert.base, _build_rule(table, insert.rule))
    _delete(table, change.delete)


def _create(table: Any, name: str) -> None:
    if len(name) > _CHAIN_NAME_MAX:
        raise ValueError(f"chain name {name} is longer than {_CHAIN_NAME_MAX} characters")
    table.create_chain(name)


def _delete(table: Any, names: tuple[str, ...]) -> None:
    # As in restore text, which declares our chains first: a missing chain is no error.
    existing = [name for name in names if name == DOCKER_USER or table.is_chain(name)]
    for name in existing:
        if name != DOCKER_USER:
            table.flush_entries(name)
    for name in existing:
        table.delete_chain(name)


class _SingleTableRule(iptc.Rule6):  # type: ignore[misc]  # iptc has no types
    """A rule that looks for its target in one table and opens no other table."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        self._table = table

    @property
    def tables(self) -> list[Any]:
        return [self._table]


def _build_rule(table: Any, rule: Rule) -> Any:
    """The rule as libiptc takes it, with the bytes that the restore tool makes of format_rule."""
    result = _SingleTableRule(table)
    text, _, target = f" {format_rule(rule)}".rpartition(" -j ")
    options, *matches = text.split(" -m ")
    # Before matches and target: their parsers read the protocol.
    _set_options(result, options)
    for match in matches:
        extension, *words = match.split()
        _set_parameter(result.create_match(extension), words)
    name, *words = target.split()
    _set_parameter(result.create_target(name), words)
    return result.rule


def _set_options(result: Any, text: str) -> None:
    """Set the options that belong to no match."""
    ip = result.get_ip()
    for inverted, option, value in _OPTION.findall(text):
        match option:
            case "-s":
                result.src = inverted + value
            case "-d":
                result.dst = inverted + value
            case "-p":
                result.protocol = value.replace("ipv6-icmp", "icmpv6")
            case "-i":
                ip.iniface, ip.iniface_mask = _name_and_mask(value)
                ip.invflags |= ip6t_ip6.IP6T_INV_VIA_IN if inverted else 0
            case "-o":
                ip.outiface, ip.outiface_mask = _name_and_mask(value)
                ip.invflags |= ip6t_ip6.IP6T_INV_VIA_OUT if inverted else 0


def _set_parameter(extension: Any, words: list[str]) -> None:
    """Set the parameters of a match or target to their words in the text of the rule, if any."""
    # The only parameter beside another one.
    if words[-1:] == [LIMIT_INTERFACE]:
        extension.set_parameter(words.pop().removeprefix("--"))
    match words:
        case ["!", option, value]:
            extension.set_parameter(option.removeprefix("--"), f"!{value}")
        case [option, *values]:
            extension.set_parameter(option.removeprefix("--"), values)


def _name_and_mask(name: str) -> tuple[bytes, bytes]:
    """The name and its mask. The mask includes the NUL, except for a name with "+", which is a
    prefix."""
    encoded = name.encode()
    return encoded, b"\xff" * (len(encoded) + (-1 if name.endswith("+") else 1))


def _option_size(extensions: Any) -> int:
    """The size of an option in the installed library, found with a match that has several options.

    With larger options the place of the second name is zero, as after the last option.
    """
    matches = extensions.find_match("addrtype")
    if not matches:
        raise FirewallError(
            "python-iptables finds no extensions of ip6tables: take XTABLES_LIBDIR out of the "
            'environment, or set backend = "nft" in the configuration'
        )
    options = matches[0].x6_options
    return _OPTION_SIZE if _find_option(options, b"dst-type", _OPTION_SIZE) else _OPTION_SIZE + 8


def _find_option(options: Any, name: bytes, size: int) -> Any:
    """The option with this name; None if there is none."""
    address = ctypes.cast(options, ctypes.c_void_p).value
    while address:
        option = xt_option_entry.from_address(address)
        if not option.name:
            break
        if option.name == name:
            return option
        address += size
    return None
