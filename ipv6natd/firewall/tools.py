"""Finds and runs the tools of ip6tables and nft."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable

from ipv6natd.firewall.backend import FirewallError, MissingTable
from ipv6natd.netfilter.rules import Backend, Table
from ipv6natd.system.process import run, which

TOOL_TIMEOUT = 30.0
"""Seconds for one call of a tool, including the wait for the xtables lock."""
LOCK_VARIABLE = "XTABLES_LOCKFILE"
INSTALL_HINT = "install the package iptables"
_WARNING = re.compile(r"^# Warning: .*$\n?", re.MULTILINE)
_LINE_NUMBER = re.compile(r"\bline:? (\d+)\b")
_MISSING_TABLE = re.compile(rf"can't initialize ip6tables table `({'|'.join(Table)})'")


def tool_variant(tool: str) -> Backend:
    """The variant of a tool of ip6tables. Raises FirewallError."""
    # Before iptables 1.8 legacy was the only variant, and the version did not name it.
    return Backend.NFT if "nf_tables" in run_tool([tool, "--version"]) else Backend.LEGACY


def variant_tool(backend: Backend, *verb: str) -> str:
    """The path of a tool of this variant. Raises FirewallError if the host does not have it."""
    name = "-".join(["ip6tables", backend, *verb])
    if path := which(name):
        return path
    shared = which("-".join(["ip6tables", *verb]))
    if shared and tool_variant(shared) is backend:
        return shared
    raise FirewallError(
        f'this host has no {name}: {INSTALL_HINT}, or set backend = "auto" in the configuration'
    )


def run_tool(
    argv: list[str],
    *,
    stdin: str = "",
    executable: str | None = None,
    on_start: Callable[[int], None] = lambda _: None,
) -> str:
    """The output of a tool that reads or writes rules. Raises FirewallError if it fails."""
    command = " ".join(argv)
    # If the administrator moved the lock, all tools of the host must use the same lock.
    lock = os.environ.get(LOCK_VARIABLE)
    environment = {LOCK_VARIABLE: lock} if lock else {}
    try:
        result = run(
            argv,
            stdin=stdin,
            timeout=TOOL_TIMEOUT,
            environment=environment,
            executable=executable,
            on_start=on_start,
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
