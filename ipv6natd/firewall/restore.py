"""The backend with `ip6tables-restore` and `ip6tables-save`, for both variants.

One process a call. The text is made and parsed in `netfilter`.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Mapping as Map

from ipv6natd.firewall import monitor
from ipv6natd.firewall.backend import FirewallError, MissingTable
from ipv6natd.netfilter import counters
from ipv6natd.netfilter.counters import DnatKey
from ipv6natd.netfilter.diff import Observed, TableChange
from ipv6natd.netfilter.parse import parse_save
from ipv6natd.netfilter.render import format_change
from ipv6natd.netfilter.rules import Backend, Table
from ipv6natd.system.process import TOOL_DIRECTORIES, run, which

TOOL_TIMEOUT = 30.0
"""Seconds for one call of a tool, including the wait for the xtables lock."""
LOCK_VARIABLE = "XTABLES_LOCKFILE"

PROBE_RULES = """\
*raw
-A PREROUTING -m addrtype --src-type LOCAL,ANYCAST -j DROP
COMMIT
*filter
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED,INVALID,DNAT -m mark --mark 0x1/0x1 -j ACCEPT
-A FORWARD -p tcp -m tcp --dport 1 -m comment --comment ipv6natd -j REJECT --reject-with tcp-reset
COMMIT
*nat
-A PREROUTING -m addrtype --dst-type LOCAL -p udp -m udp --dport 1 -j DNAT --to-destination [::2]:1
-A PREROUTING -p udp -m udp --dport 1 -j REDIRECT
-A POSTROUTING -s ::2/128 -j MASQUERADE
-A POSTROUTING -s ::2/128 -j SNAT --to-source ::3
COMMIT
"""
"""All matches and targets that ipv6natd uses, for `--test`."""
NFT_READ_INTERVAL = 600.0
"""With `nft monitor`. A read of 10,000 rules takes a quarter of a second."""
UNMONITORED_READ_INTERVAL = 1.5
INSTALL_HINT = "install the package iptables"
_WARNING = re.compile(r"^# Warning: .*$\n?", re.MULTILINE)
_LINE_NUMBER = re.compile(r"\bline:? (\d+)\b")
_TABLES = "|".join(Table)
_MISSING_TABLE = re.compile(rf"can't initialize ip6tables table `({_TABLES})'")
_INCOMPATIBLE = re.compile(rf"^# (Table `({_TABLES})' is incompatible.*)$", re.MULTILINE)


def detect_backend() -> Backend:
    """The variant of the host's `ip6tables`. Raises FirewallError if there is none."""
    if path := which("ip6tables"):
        return _variant(path)
    raise FirewallError(f"there is no ip6tables in {':'.join(TOOL_DIRECTORIES)}: {INSTALL_HINT}")


def probe_kernel() -> None:
    """Raises FirewallError if nf_tables rejects a match or target of ours. Writes nothing.

    With legacy, a probe would create the legacy tables in the kernel.
    """
    argv = [_variant_tool(Backend.NFT, "restore"), "--noflush", "--wait", "--test"]
    run_tool(argv, stdin=PROBE_RULES)


def read_connection_counts(backend: Backend) -> Map[DnatKey, int]:
    """The number of connections of our DNAT rules. Raises FirewallError.

    Reads all tables: with legacy, to name a table creates it.
    """
    return counters.connection_counts(run_tool([_variant_tool(backend, "save"), "-c"]))


class RestoreFirewall:
    """One variant, with its restore and save tools."""

    def __init__(self, backend: Backend) -> None:
        """Raises FirewallError if the host does not have the tools of this variant."""
        self.backend = backend
        self._restore = _variant_tool(backend, "restore")
        self._save = _variant_tool(backend, "save")
        self._tool = _variant_tool(backend)
        self._nft = which("nft") if backend is Backend.NFT else None
        self._own_writes: deque[int] = deque(maxlen=64)
        """The processes of the last writes."""

    @property
    def read_interval(self) -> float:
        """See Firewall."""
        return NFT_READ_INTERVAL if self._nft else UNMONITORED_READ_INTERVAL

    def read(self) -> Observed:
        """See Firewall. Names no table: with legacy, that would create it."""
        return parse_save(save_text(self._save))

    def digests(self, table: Table, chains: Iterable[str]) -> dict[str, str]:
        """See Firewall."""
        lines = [f"*{table}\n"]
        for name in chains:
            listing = run_tool([self._tool, "-w", "-t", table, "-S", name])
            # The first line is "-N NAME", in the save format ":NAME"; the rules follow.
            lines += f":{name} - [0:0]\n", listing.partition("\n")[2]
        return parse_save("".join([*lines, "COMMIT\n"]))[table].chains

    def write(self, change: TableChange) -> None:
        """See Firewall."""
        self.restore(format_change(change))

    def restore(self, text: str) -> None:
        """Apply restore text, one transaction a table. Raises FirewallError."""
        argv = [self._restore, "--noflush", "--wait"]
        run_tool(argv, stdin=text, on_start=self._own_writes.append)

    async def watch(self, changed: Callable[[], None]) -> None:
        """See Firewall. Without `nft monitor`, the full reads find all writes."""
        if self._nft:
            await monitor.watch(self._nft, self._own_writes, changed)


def save_text(tool: str) -> str:
    """The output of an ip6tables-save. Raises FirewallError, also if it lacks rules of a table:
    as an empty table it would get our jumps again at each pass."""
    text = run_tool([tool])
    if incompatible := _INCOMPATIBLE.search(text):
        problem, table = incompatible.groups()
        raise FirewallError(
            f"{tool} cannot read: {problem} It has a rule that ip6tables cannot show; "
            f"`nft list table ip6 {table}` shows the rule: move it to another table"
        )
    return text


def _variant(tool: str) -> Backend:
    # Before iptables 1.8 legacy was the only variant, and the version did not name it.
    return Backend.NFT if "nf_tables" in run_tool([tool, "--version"]) else Backend.LEGACY


def _variant_tool(backend: Backend, *verb: str) -> str:
    name = "-".join(["ip6tables", backend, *verb])
    if path := which(name):
        return path
    shared = which("-".join(["ip6tables", *verb]))
    if shared and _variant(shared) is backend:
        return shared
    raise FirewallError(
        f'this host has no {name}: {INSTALL_HINT}, or set backend = "auto" in the configuration'
    )


def run_tool(
    argv: list[str], *, stdin: str = "", on_start: Callable[[int], None] = lambda _: None
) -> str:
    """The output of a tool that reads or writes rules. Raises FirewallError if it fails."""
    command = " ".join(argv)
    # If the administrator moved the lock, all tools of the host must use the same lock.
    lock = os.environ.get(LOCK_VARIABLE)
    environment = {LOCK_VARIABLE: lock} if lock else {}
    try:
        result = run(
            argv, stdin=stdin, timeout=TOOL_TIMEOUT, environment=environment, on_start=on_start
        )
    except subprocess.TimeoutExpired:
        raise FirewallError(
            f"{command} did not end within {TOOL_TIMEOUT:g} s; "
            "does another program hold /run/xtables.lock?"
        ) from None
    except OSError as error:
        raise FirewallError(f"{command} cannot be run: {error.strerror}") from error
    if result.returncode != 0:
        text = _refusal_text(command, result.returncode, result.stderr, stdin)
        # The journal and the bus reject bytes that are not UTF-8.
        text = text.encode("utf-8", "replace").decode()
        if missing := _MISSING_TABLE.search(result.stderr):
            raise MissingTable(text, Table(missing[1]))
        raise FirewallError(text)
    return result.stdout


def _refusal_text(command: str, code: int, stderr: str, stdin: str) -> str:
    """The message of the tool, and the rejected line with its neighbours."""
    reason = _WARNING.sub("", stderr).strip() or f"exit status {code}, no message"
    message = f"{command} refused: {reason}"
    found = _LINE_NUMBER.search(reason)
    if found is None or not stdin:
        return message
    # For some errors nft reports the next line, hence two lines before.
    number = int(found[1])
    lines = stdin.splitlines()
    neighbours = range(max(1, number - 2), min(len(lines), number + 1) + 1)
    return "\n".join([message, *(f"{line:6} {lines[line - 1]}" for line in neighbours)])
