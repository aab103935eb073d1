"""The backend with python-iptables: the legacy variant without a process a call.

Import this module only if the legacy variant was chosen: the import of iptc loads kernel modules.

Only the parts of python-iptables that map to libiptc and the extensions' parsers are used. These
parts are unsafe in a daemon, or wrong in the supported versions:
- `Chain.append_rule`, and reading a parameter, replace file descriptor 1 of the process by a pipe
  for a moment. Here entries are appended through the table and read as bytes.
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
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import iptc
from iptc.ip6tc import ip6t_ip6
from iptc.xtables import NFPROTO_IPV6, XTablesError, xt_option_entry, xtables

from ipv6natd.firewall.backend import FirewallError, MissingTable
from ipv6natd.firewall.restore import TOOL_TIMEOUT, RestoreFirewall
from ipv6natd.firewall.xtables import (
    CHAIN_NAME_MAX,
    Entry,
    existing_tables,
    parse_entry,
    table_size,
    with_chain_name,
    xtables_lock,
)
from ipv6natd.netfilter.diff import Observed, ObservedJump, ObservedTable, TableChange
from ipv6natd.netfilter.render import format_ports
from ipv6natd.netfilter.rules import (
    DOCKER_USER,
    PREFIX,
    SYN,
    Backend,
    Dnat,
    Jump,
    Reject,
    Rule,
    Snat,
    Table,
    Target,
    Verdict,
)

MAX_RULES_IN_PROCESS = 32
"""Rules in one change above which the restore tool is faster. A rule takes 0.1 to 0.2 ms here, in
Python code of iptc for each option. The restore tool takes 3 to 4 ms in a small table, and as long
as 50 rules in a large one."""
_INTERFACE_MAX = 15
_OPTION_SIZE = ctypes.sizeof(xt_option_entry)
"""Bytes of an option in iptc. In newer libraries the last two fields have four more bytes each."""

_TABLES_LOCK = threading.Lock()
"""Held while a table is open: Table6 objects are shared in the process, and have cursors."""


class LegacyFirewall:
    """The legacy variant: small changes in this process, large ones by the restore tool."""

    def __init__(
        self, *, timeout: float = TOOL_TIMEOUT, max_rules: int = MAX_RULES_IN_PROCESS
    ) -> None:
        """`timeout`: seconds to wait for the xtables lock. Raises FirewallError without tools."""
        self._timeout = timeout
        self._max_rules = max_rules
        self._tool = RestoreFirewall(Backend.LEGACY, timeout=timeout)
        self._sizes_at_read: dict[Table, tuple[int, int]] = {}
        # Without a reference iptc would drop the object and initialize the extensions again.
        self._extensions = xtables(NFPROTO_IPV6)
        size = _option_size(self._extensions)
        xtables._option_lookup = lambda _, rows, name: _find_option(rows, name, size)

    @property
    def backend(self) -> Backend:
        """The variant of ip6tables."""
        return Backend.LEGACY

    def read(self) -> Observed:
        """See Firewall. Takes no xtables lock: the kernel returns a table atomically."""
        # Sizes first: an edit before the read of the rules then shows as a change.
        self._sizes_at_read = self.table_sizes()
        names = existing_tables()
        return {t: _read_table(t) if t in names else ObservedTable() for t in Table}

    def write(self, change: TableChange) -> None:
        """See Firewall."""
        if sum(len(chain.rules) for chain in change.chains) > self._max_rules:
            unchanged = self._sizes_at_read.get(change.table) == _size(change.table)
            self._write_large(change)
            if unchanged:
                self._sizes_at_read[change.table] = _size(change.table)
            return
        with xtables_lock(self._timeout):
            unchanged = self._sizes_at_read.get(change.table) == _size(change.table)
            with _open_table(change.table) as table:
                _apply(table, change)
                table.commit()
            if unchanged:
                self._sizes_at_read[change.table] = _size(change.table)

    def digests(self, table: Table, chains: Iterable[str]) -> dict[str, str]:
        """See Firewall."""
        with _open_table(table) as kernel_table:
            return {name: _digest(kernel_table, name) for name in chains}

    def changed_since_read(self) -> bool:
        """True if a table has another size than at the last read."""
        return self.table_sizes() != self._sizes_at_read

    def table_sizes(self) -> dict[Table, tuple[int, int]]:
        """Entries and bytes of the tables, (0, 0) for a missing one; cheap enough for every second.

        An edit that keeps both numbers is not visible. Raises FirewallError.
        """
        return {table: _size(table) for table in Table}

    def _write_large(self, change: TableChange) -> None:
        # The restore tool takes the lock itself, and identifies a rule by its own text only.
        if change.remove:
            with _open_table(change.table) as table:
                places = [(jump.base, _find_rule(table, jump)[0]) for jump in change.remove]
            jumps = self._tool.read()[change.table].jumps
            jumps_by_place = {(jump.base, jump.position): jump for jump in jumps}
            try:
                change = replace(change, remove=tuple(jumps_by_place[place] for place in places))
            except KeyError as error:
                raise FirewallError(
                    f"another program changed the legacy table {change.table}: "
                    f"there is no jump at {error} any more"
                ) from None
        self._tool.write(change)


def _size(table: Table) -> tuple[int, int]:
    return table_size(table) if table in existing_tables() else (0, 0)


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


def _read_table(name: Table) -> ObservedTable:
    digests: dict[str, str] = {}
    jumps: list[ObservedJump] = []
    docker_user = None
    with _open_table(name) as table:
        chains = [chain.name for chain in table.chains]
        for chain in chains:
            if chain.startswith(PREFIX):
                digests[chain] = _digest(table, chain)
                continue
            rules = [rule for rule, _ in _entries(table, chain)]
            jumps += (
                rule.observed_jump(chain, position)
                for position, rule in enumerate(rules)
                if rule.is_relevant(chains)
            )
            if chain == DOCKER_USER:
                docker_user = len(rules)
    return ObservedTable(chains=digests, jumps=tuple(jumps), docker_user=docker_user)


def _digest(table: Any, chain: str) -> str:
    """The digest of a chain for ObservedTable. Raises IPTCError if the chain does not exist."""
    if not table.is_chain(chain):
        raise iptc.IPTCError(f"there is no chain {chain}")
    digest = blake2b(digest_size=16)
    count = 0
    for rule, _ in _entries(table, chain):
        digest.update(rule.identity)
        count += 1
    return f"{count}:{digest.hexdigest()}"


def _entries(table: Any, chain: str) -> Iterator[tuple[Entry, Any]]:
    """The rules of a chain, as values and as structures of libiptc."""
    struct = table.first_rule(chain)
    while struct:
        target = (table.get_target(struct) or b"").decode("utf-8", "replace")
        yield parse_entry(_entry_bytes(struct), struct.target_offset, target), struct
        struct = table.next_rule(struct)


def _entry_bytes(struct: Any) -> bytes:
    return ctypes.string_at(ctypes.addressof(struct), struct.next_offset)


def _find_rule(table: Any, jump: ObservedJump) -> tuple[int, Any]:
    """Position and structure of the first rule with this text. Raises IPTCError."""
    for position, (rule, struct) in enumerate(_entries(table, jump.base)):
        if rule.text == jump.text:
            return position, struct
    raise iptc.IPTCError(f"there is no rule {jump.text} in chain {jump.base}")


def _apply(table: Any, change: TableChange) -> None:
    """The steps in the order of TableChange, on the copy of the table in this process."""
    for jump in change.remove:
        _remove(table, jump)
    for name in change.create:
        _create(table, name)
    for chain in change.chains:
        if table.is_chain(chain.name):
            table.flush_entries(chain.name)
        else:
            _create(table, chain.name)
    for chain in change.chains:
        for rule in chain.rules:
            table.append_entry(chain.name, _build_rule(table, rule))
    for insert in reversed([jump for jump in change.insert if jump.first]):
        table.insert_entry(insert.base, _build_rule(table, insert.rule), 0)
    for insert in change.insert:
        if not insert.first:
            table.append_entry(insert.base, _build_rule(table, insert.rule))
    _delete(table, change.delete)


def _remove(table: Any, jump: ObservedJump) -> None:
    _, struct = _find_rule(table, jump)
    raw = with_chain_name(_entry_bytes(struct), struct.target_offset, jump.target)
    mask = (ctypes.c_ubyte * len(raw)).from_buffer_copy(b"\xff" * len(raw))
    table.delete_entry(jump.base, ctypes.create_string_buffer(raw, len(raw)), mask)


def _create(table: Any, name: str) -> None:
    if len(name) > CHAIN_NAME_MAX:
        raise ValueError(f"chain name {name} is longer than {CHAIN_NAME_MAX} characters")
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
    if rule.source is not None:
        result.src = str(rule.source)
    if rule.not_source is not None:
        result.src = f"!{rule.not_source}"
    if rule.destination is not None:
        result.dst = str(rule.destination)
    if rule.not_destination is not None:
        result.dst = f"!{rule.not_destination}"
    _set_interfaces(result.get_ip(), rule)
    # Before matches and target: their parsers read the protocol.
    if rule.icmp or rule.authentication:
        result.protocol = "icmpv6" if rule.icmp else "ah"
    elif rule.protocol is not None:
        result.protocol = str(rule.protocol)
    for extension, parameter, value in _match_parameters(rule):
        result.create_match(extension).set_parameter(parameter, value)
    name, parameters = _target_parameters(rule.target)
    target = result.create_target(name)
    for parameter, value in parameters.items():
        target.set_parameter(parameter, value)
    return result.rule


def _set_interfaces(ip: Any, rule: Rule) -> None:
    if name := rule.in_interface or rule.not_in_interface:
        ip.iniface, ip.iniface_mask = _name_and_mask(name)
    if name := rule.out_interface or rule.not_out_interface:
        ip.outiface, ip.outiface_mask = _name_and_mask(name)
    if rule.not_in_interface:
        ip.invflags |= ip6t_ip6.IP6T_INV_VIA_IN
    if rule.not_out_interface:
        ip.invflags |= ip6t_ip6.IP6T_INV_VIA_OUT


def _name_and_mask(name: str) -> tuple[bytes, bytes]:
    """The name and its mask. The mask includes the NUL, except for a name with "+", which is a
    prefix."""
    encoded = name.encode()
    if len(encoded) > _INTERFACE_MAX:
        raise ValueError(f"interface name {name} is longer than {_INTERFACE_MAX} bytes")
    if name.endswith("+"):
        return encoded, b"\xff" * (len(encoded) - 1)
    return encoded, b"\xff" * (len(encoded) + 1)


def _match_parameters(rule: Rule) -> Iterator[tuple[str, str, str | list[str]]]:
    """(extension, parameter, values) in the order of format_rule, which is the order in memory."""
    if rule.protocol is not None and rule.ports is not None:
        yield str(rule.protocol), "dport", format_ports(*rule.ports)
    if rule.syn:
        yield "tcp", "tcp-flags", list(SYN)
    if rule.mark is not None:
        yield "mark", "mark", "{:#x}/{:#x}".format(*rule.mark)
    if rule.source_local:
        yield "addrtype", "src-type", "LOCAL"
    if rule.source_local_or_anycast:
        yield "addrtype", "src-type", "LOCAL,ANYCAST"
    if rule.source_not_local:
        yield "addrtype", "src-type", "!LOCAL"
    if rule.destination_local:
        yield "addrtype", "dst-type", "LOCAL"
    if rule.destination_not_local:
        yield "addrtype", "dst-type", "!LOCAL"
    if rule.flow is not None:
        protocol, first, last = rule.flow
        yield "conntrack", "ctproto", str(protocol)
        yield "conntrack", "ctorigdstport", format_ports(first, last)
    if rule.states:
        yield "conntrack", "ctstate", ",".join(rule.states)
    if rule.reply:
        yield "conntrack", "ctdir", "REPLY"
    if rule.comment:
        yield "comment", "comment", rule.comment


def _target_parameters(target: Target) -> tuple[str, dict[str, str]]:
    match target:
        case Verdict():
            return str(target), {}
        case Jump(chain):
            return chain, {}
        case Dnat(address, None):
            return "DNAT", {"to-destination": str(address)}
        case Dnat(address, port):
            return "DNAT", {"to-destination": f"[{address}]:{port}"}
        case Snat(address):
            return "SNAT", {"to-source": str(address)}
        case Reject(reject_with):
            return "REJECT", {"reject-with": str(reject_with)}


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
