"""The backend with `ip6tables-restore` and `ip6tables-save`, for both variants.

One process a call. The text is made and parsed in `netfilter`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace

from ipv6natd.firewall import monitor
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.firewall.save import save_text
from ipv6natd.firewall.tools import INSTALL_HINT, run_tool, tool_variant, variant_tool
from ipv6natd.netfilter.diff import Observed, ObservedJump, TableChange
from ipv6natd.netfilter.observe import parse_save
from ipv6natd.netfilter.render import format_change
from ipv6natd.netfilter.rules import Backend, Table
from ipv6natd.system.process import TOOL_DIRECTORIES, which

PROBE_RULES = """\
*raw
-A PREROUTING -m addrtype --src-type LOCAL,ANYCAST --limit-iface-in -j DROP
-A PREROUTING -m pkttype --pkt-type broadcast -j DROP
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


def detect_backend() -> Backend:
    """The variant of the host's `ip6tables`. Raises FirewallError if there is none."""
    if path := which("ip6tables"):
        return tool_variant(path)
    raise FirewallError(f"there is no ip6tables in {':'.join(TOOL_DIRECTORIES)}: {INSTALL_HINT}")


def probe_kernel() -> None:
    """Raises FirewallError if nf_tables rejects a match or target of ours. Writes nothing.

    With legacy, a probe would create the legacy tables in the kernel.
    """
    argv = [variant_tool(Backend.NFT, "restore"), "--noflush", "--wait", "--test"]
    run_tool(argv, stdin=PROBE_RULES)


def read_tables(backend: Backend) -> str:
    """All tables, also those with native rules of nft. Raises FirewallError."""
    return save_text(variant_tool(backend, "save"))


def read_counted_tables(backend: Backend) -> str:
    """All tables with their counters. Raises FirewallError.

    With legacy, to name a table creates it.
    """
    return run_tool([variant_tool(backend, "save"), "-c"])


class RestoreFirewall:
    """One variant, with its restore and save tools."""

    def __init__(self, backend: Backend) -> None:
        """Raises FirewallError if the host does not have the tools of this variant."""
        self.backend = backend
        self._restore = variant_tool(backend, "restore")
        self._save = variant_tool(backend, "save")
        self._tool = variant_tool(backend)
        self._nft = which("nft") if backend is Backend.NFT else None
        self._own_writes: deque[int] = deque(maxlen=64)
        """The processes of the last writes."""
        watched = (self._restore, self._nft) if self._nft else ()
        self._writers = {tool: monitor.writer(tool) for tool in watched}
        """Tool -> the file that writes are made with, so that they are recognized."""

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
        """See Firewall. Beside native rules a jump can only be removed by nft, in a transaction
        before or after: a packet may pass a chain twice, but none passes by."""
        by_nft = [jump for jump in change.remove if jump.handle is not None]
        remove = tuple(jump for jump in change.remove if jump.handle is None)
        self._delete(change.table, [jump for jump in by_nft if jump.target in change.delete])
        self.restore(format_change(replace(change, remove=remove)))
        self._delete(change.table, [jump for jump in by_nft if jump.target not in change.delete])

    def write_all(self, changes: Iterable[TableChange]) -> None:
        """See Firewall. By one process, whose start takes longer than a small change."""
        texts: list[str] = []
        for change in changes:
            if any(jump.handle is not None for jump in change.remove):
                self._restore_all(texts)
                texts = []
                self.write(change)
            else:
                texts.append(format_change(change))
        self._restore_all(texts)

    def _restore_all(self, texts: list[str]) -> None:
        if texts:
            self.restore("".join(texts))

    def _delete(self, table: Table, jumps: Iterable[ObservedJump]) -> None:
        rules = [
            {"family": "ip6", "table": table, "chain": jump.base, "handle": jump.handle}
            for jump in jumps
        ]
        if rules and self._nft:
            text = json.dumps({"nftables": [{"delete": {"rule": rule}} for rule in rules]})
            self._run_writer([self._nft, "-j", "-f", "-"], text)

    def restore(self, text: str) -> None:
        """Apply restore text, one transaction a table. Raises FirewallError."""
        self._run_writer([self._restore, "--noflush", "--wait"], text)

    def _run_writer(self, argv: list[str], text: str) -> None:
        run_tool(
            argv,
            stdin=text,
            executable=self._writers.get(argv[0]),
            on_start=self._own_writes.append,
        )

    async def watch(self, changed: Callable[[], None]) -> None:
        """See Firewall. Without `nft monitor`, the full reads find all writes."""
        if self._nft:
            await monitor.watch(self._nft, self._own_writes, changed)
