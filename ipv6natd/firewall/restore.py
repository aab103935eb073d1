"""The firewall through `ip6tables-restore` and `ip6tables-save`, either variant.

One process a call; what to write and what was read is worded in save_text.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Mapping as Map
from contextlib import suppress
from functools import partial

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.netfilter import counters
from ipv6natd.netfilter.counters import DnatKey
from ipv6natd.netfilter.diff import Observed, TableChange
from ipv6natd.netfilter.parse import parse_save
from ipv6natd.netfilter.render import format_change_in_chunks
from ipv6natd.netfilter.rules import Backend, Table
from ipv6natd.system.process import TOOL_DIRECTORIES, run, which

TIMEOUT = 30.0
"""Seconds that one call of a tool may take, waiting for the xtables lock included."""
LOCK_VARIABLE = "XTABLES_LOCKFILE"

EVERY_KIND = """\
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
"""Each match and each target of ours once; never in force."""
INSTALL = "install the package iptables"
_WARNING = re.compile(r"^# Warning: .*$\n?", re.MULTILINE)
_BAD_LINE = re.compile(r"\bline:? (\d+)\b")
_INCOMPATIBLE = re.compile(r"^# (Table `(filter|nat)' is incompatible.*)$", re.MULTILINE)


def detect() -> Backend:
    """The variant that this host's `ip6tables` is. Raises FirewallError if there is none."""
    tool = _find("ip6tables")
    if tool is None:
        raise FirewallError(f"there is no ip6tables in {':'.join(TOOL_DIRECTORIES)}: {INSTALL}")
    return _variant(tool)


def probe(backend: Backend) -> None:
    """Whether the kernel takes every kind of rule; nothing is written. Raises FirewallError."""
    _run([_tool(backend, "restore"), "--noflush", "--wait", "--test"], stdin=lambda: [EVERY_KIND])


def connections(backend: Backend) -> Map[DnatKey, int]:
    """How often each of our DNAT rules was taken. Raises FirewallError.

    The whole of what stands is read: naming a table would make legacy create it.
    """
    return counters.connection_counts(_run([_tool(backend, "save"), "-c"]))


class RestoreFirewall:
    """One variant, by its restore and save tools."""

    def __init__(self, backend: Backend, *, timeout: float = TIMEOUT) -> None:
        """Raises FirewallError if the host does not have the tools of this variant."""
        self._backend = backend
        self._timeout = timeout
        self._restore = _tool(backend, "restore")
        self._save = _tool(backend, "save")
        self._tool = _tool(backend)
        self._writers: deque[int] = deque(maxlen=64)

    @property
    def backend(self) -> Backend:
        """Which variant this is."""
        return self._backend

    def read(self) -> Observed:
        """See Firewall. Never names a table: that would make legacy create it."""
        text = _run([self._save], timeout=self._timeout)
        # Its rules are not in the text; taken for empty, it would get our jumps again and again.
        if bad := _INCOMPATIBLE.search(text):
            raise FirewallError(
                f"{self._save} cannot read: {bad[1]} Somebody put a rule there that ip6tables has "
                f"no words for; `nft list table ip6 {bad[2]}` shows it: move it to another table"
            )
        return parse_save(text)

    def digests(self, table: Table, chains: Iterable[str]) -> dict[str, str]:
        """See Firewall."""
        lines = [f"*{table}\n"]
        for name in chains:
            said = _run([self._tool, "-w", "-t", table, "-S", name], timeout=self._timeout)
            # "-N NAME", which a save words in another way, and its rules.
            lines += f":{name} - [0:0]\n", said.partition("\n")[2]
        return parse_save("".join([*lines, "COMMIT\n"]))[table].chains

    def write(self, change: TableChange) -> None:
        """See Firewall."""
        self._restored(partial(format_change_in_chunks, change))

    def restore(self, text: str) -> None:
        """Apply restore text, one transaction a table in it. Raises FirewallError."""
        self._restored(lambda: [text])

    def _restored(self, text: Callable[[], Iterable[str]]) -> None:
        argv = [self._restore, "--noflush", "--wait"]
        _run(argv, stdin=text, timeout=self._timeout, on_start=self._writers.append)

    def wrote(self, process: int) -> bool:
        """Whether this process was a write of ours; asked once for each."""
        with suppress(ValueError):
            self._writers.remove(process)
            return True
        return False


def _find(name: str) -> str | None:
    return which(name, TOOL_DIRECTORIES)


def _variant(tool: str) -> Backend:
    # Before 1.8 there was one variant, and the version did not name it.
    return Backend.NFT if "nf_tables" in _run([tool, "--version"]) else Backend.LEGACY


def _tool(backend: Backend, *verb: str) -> str:
    name = "-".join(["ip6tables", backend, *verb])
    named = _find(name)
    if named is not None:
        return named
    common = _find("-".join(["ip6tables", *verb]))
    if common is not None and _variant(common) is backend:
        return common
    raise FirewallError(
        f'this host has no {name}: {INSTALL}, or set backend = "auto" in the configuration'
    )


def _environment() -> dict[str, str]:
    # Whoever moved the lock moved it for every tool of the host.
    lock = os.environ.get(LOCK_VARIABLE)
    return {LOCK_VARIABLE: lock} if lock else {}


def _run(
    argv: list[str],
    *,
    stdin: Callable[[], Iterable[str]] = lambda: (),
    timeout: float = TIMEOUT,
    on_start: Callable[[int], None] = lambda _: None,
) -> str:
    command = " ".join(argv)
    try:
        done = run(
            argv, stdin=stdin(), timeout=timeout, environment=_environment(), on_start=on_start
        )
    except subprocess.TimeoutExpired:
        raise FirewallError(
            f"{command} did not end within {timeout:g} s; "
            "does another program hold /run/xtables.lock?"
        ) from None
    except OSError as error:
        raise FirewallError(f"{command} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        raise FirewallError(
            _printable(_refusal(command, done.returncode, done.stderr, "".join(stdin())))
        )
    return done.stdout


def _refusal(command: str, code: int, stderr: str, stdin: str) -> str:
    """What the tool said, and the line that it did not like between its neighbours."""
    said = _WARNING.sub("", stderr).strip() or f"exit status {code}, no message"
    message = f"{command} refused: {said}"
    bad = _BAD_LINE.search(said)
    if bad is None or not stdin:
        return message
    # nft counts one line too many for some errors, hence two lines before it.
    number = int(bad[1])
    lines = stdin.splitlines()
    near = range(max(1, number - 2), min(len(lines), number + 1) + 1)
    return "\n".join([message, *(f"{n:6} {lines[n - 1]}" for n in near)])


def _printable(text: str) -> str:
    """Without the bytes that surrogateescape let in: a journal or a bus would choke on them."""
    return text.encode("utf-8", "replace").decode()
