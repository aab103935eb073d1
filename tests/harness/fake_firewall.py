"""A firewall in memory for tests: it stores rule text, and refuses what the real ones refuse."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from itertools import pairwise

from ipv6natd.firewall.backend import FirewallError, MissingTable
from ipv6natd.netfilter.diff import Observed, TableChange
from ipv6natd.netfilter.observe import parse_save
from ipv6natd.netfilter.render import format_change
from ipv6natd.netfilter.rules import Backend, Table

BUILT_IN = {
    Table.RAW: ("PREROUTING", "OUTPUT"),
    Table.FILTER: ("INPUT", "FORWARD", "OUTPUT"),
    Table.NAT: ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
}
_EVERYWHERE = {"ACCEPT", "DROP", "RETURN", "LOG", "MARK", "CONNMARK", "NFLOG", "NFQUEUE"}
TARGETS = {
    Table.RAW: _EVERYWHERE | {"CT"},
    Table.FILTER: _EVERYWHERE | {"REJECT"},
    Table.NAT: _EVERYWHERE | {"DNAT", "SNAT", "MASQUERADE", "REDIRECT"},
}
"""Targets that are not chains, permitted by the kernel in each table."""
_NAME_MAX = 28

_Chains = dict[str, list[str]]


class FakeFirewall:
    """The tables as text. `fail_next` makes one write fail; `writes` counts the others."""

    def __init__(self, backend: Backend = Backend.NFT) -> None:
        """Without tables, like the kernel before the first write."""
        self._backend = backend
        self._tables: dict[Table, _Chains] = {}
        self.fail_next = ""
        """The error message of the next write."""
        self.missing: frozenset[Table] = frozenset()
        """Tables that the kernel does not have."""
        self.writes = 0
        self.reads = 0
        self.digest_reads = 0

    @property
    def backend(self) -> Backend:
        """The simulated variant."""
        return self._backend

    @property
    def read_interval(self) -> float:
        """See Firewall."""
        return 60

    async def watch(self, changed: Callable[[], None]) -> None:
        """A test calls `changed` itself."""

    def read(self) -> Observed:
        """See Firewall."""
        self.reads += 1
        return parse_save(self.dump())

    def digests(self, table: Table, chains: Iterable[str]) -> dict[str, str]:
        """See Firewall."""
        self.digest_reads += 1
        own = parse_save(self.dump())[table].chains
        for name in chains:
            _require(name in own, f"No chain by that name: {name}")
        return {name: own[name] for name in chains}

    def write(self, change: TableChange) -> None:
        """See Firewall."""
        if change.table in self.missing:
            raise MissingTable(f"there is no table {change.table}", change.table)
        if self.fail_next:
            message, self.fail_next = self.fail_next, ""
            raise FirewallError(message)
        self.load(format_change(change))
        self.writes += 1

    def write_all(self, changes: Iterable[TableChange]) -> None:
        """See Firewall."""
        for change in changes:
            self.write(change)

    def load(self, text: str) -> None:
        """Apply restore text as `--noflush` does, completely or not at all."""
        tables = {
            table: {name: list(rules) for name, rules in chains.items()}
            for table, chains in self._tables.items()
        }
        table = None
        for number, line in enumerate(text.splitlines(), 1):
            if not line or line.startswith("#"):
                continue
            try:
                if line.startswith("*"):
                    table = Table(line[1:])
                    tables.setdefault(table, {name: [] for name in BUILT_IN[table]})
                elif table is None:
                    raise FirewallError("no table")
                elif line == "COMMIT":
                    _check_loops(table, tables[table])
                else:
                    _step(table, tables[table], line)
            except FirewallError as error:
                raise FirewallError(f"line {number} failed: {error}: {line}") from None
        self._tables = tables

    def flush(self) -> None:
        """Remove all tables, like `nft flush ruleset`."""
        self._tables = {}

    def dump(self) -> str:
        """The tables in the format of `ip6tables-save`."""
        lines: list[str] = []
        for table, chains in self._tables.items():
            lines.append(f"*{table}")
            for name in chains:
                policy = "ACCEPT" if name in BUILT_IN[table] else "-"
                lines.append(f":{name} {policy} [0:0]")
            for name, rules in chains.items():
                lines += [f"-A {name} {rule}" for rule in rules]
            lines.append("COMMIT")
        return "".join(f"{line}\n" for line in lines)


def _step(table: Table, chains: _Chains, line: str) -> None:
    verb, _, rest = line.partition(" ")
    name, _, rule = rest.partition(" ")
    if verb.startswith(":"):
        _declare(table, chains, verb[1:])
    elif verb == "-N":
        _require(name not in chains, "Chain already exists")
        _create(chains, name)
    else:
        _require(name in chains, "No chain/target/match by that name")
        _edit(table, chains, verb, name, rule)


def _edit(table: Table, chains: _Chains, verb: str, name: str, rule: str) -> None:
    match verb:
        case "-A":
            chains[name].append(_checked_rule(table, chains, rule))
        case "-I":
            place, _, rule = rule.partition(" ")
            chains[name].insert(int(place) - 1, _checked_rule(table, chains, rule))
        case "-D":
            _require(rule in chains[name], "Bad rule (does a matching rule exist in that chain?)")
            chains[name].remove(rule)
        case "-X":
            _require(name not in BUILT_IN[table], "cannot delete a built-in chain")
            _require(not chains[name], "Directory not empty")
            others = (rule for rules in chains.values() for rule in rules if name in rule)
            _require(all(_target(rule) != name for rule in others), "Too many links")
            del chains[name]
        case _:
            raise FirewallError("unknown command")


def _declare(table: Table, chains: _Chains, name: str) -> None:
    if name in BUILT_IN[table]:
        return
    if name in chains:
        chains[name].clear()
    else:
        _create(chains, name)


def _create(chains: _Chains, name: str) -> None:
    _require(len(name) <= _NAME_MAX, f"chain name too long (must be under {_NAME_MAX + 1} chars)")
    chains[name] = []


def _checked_rule(table: Table, chains: _Chains, rule: str) -> str:
    target = _target(rule)
    known = not target or target in chains or target in TARGETS[table]
    _require(known, f"Chain '{target}' does not exist")
    return rule


def _check_loops(table: Table, chains: _Chains) -> None:
    """Check at COMMIT that jumps form no loop."""
    for base in BUILT_IN[table]:
        _walk(chains, base, ())


def _walk(chains: _Chains, name: str, path: tuple[str, ...]) -> None:
    _require(name not in path, f"Too many levels of symbolic links: {' '.join((*path, name))}")
    for target in {_target(rule) for rule in chains[name]} & chains.keys():
        _walk(chains, target, (*path, name))


def _target(rule: str) -> str:
    tokens = rule.split() if '"' not in rule else shlex.split(rule)
    for option, value in pairwise(tokens):
        if option in ("-j", "-g"):
            return value
    return ""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise FirewallError(message)
