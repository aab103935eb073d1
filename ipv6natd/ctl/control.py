"""The commands that change something: resync, reload, cleanup. The daemon and polkit decide about
permissions."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ipv6natd.config import ConfigError, load
from ipv6natd.ctl.client import (
    EXIT_FAILED,
    EXIT_NO_PERMISSION,
    DaemonClient,
    Options,
    Result,
    is_not_running,
    listing,
)
from ipv6natd.dbus.connection import ERROR, BusError
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.sync import offline
from ipv6natd.system import process
from ipv6natd.system.terminal import printable

_AGENT_ENVIRONMENT = ("TERM", "LANG", "LC_ALL", "DBUS_SYSTEM_BUS_ADDRESS")


async def resync(daemon: DaemonClient, _options: Options) -> Result:
    """Compare engine and kernel, and write the differences."""
    value = await _call_interactively(daemon, "Resync")
    text = "rules added: {RulesAdded}, removed: {RulesRemoved}, in {DurationMs} ms\n"
    return Result(value=value, text=text.format_map(value))


async def reload(daemon: DaemonClient, _options: Options) -> Result:
    """Read the configuration again."""
    await _call_interactively(daemon, "Reload")
    return Result(value={}, text="the configuration was read again and is in force\n")


async def cleanup(daemon: DaemonClient, options: Options) -> Result:
    """Remove all rules, also if no daemon runs."""
    if "leftovers" in options.flags:
        return await _leftovers(daemon, options)
    try:
        await _call_interactively(daemon, "Cleanup")
    except BusError as error:
        if not is_not_running(error) and error.name != ERROR + "NoServer":
            raise
        return _flush_without_daemon(error)
    text = "all rules are removed; to write them again: ipv6natctl resync\n"
    return Result(value={}, text=text)


async def _leftovers(daemon: DaemonClient, options: Options) -> Result:
    """List or remove the leftovers of other programs. Only the daemon can tell them from rules in
    use."""
    dry_run = "dry-run" in options.flags
    rows = await (
        daemon.call("ListLeftovers") if dry_run else _call_interactively(daemon, "CleanupLeftovers")
    )
    if not rows:
        return Result(value=rows, text="no leftovers found\n")
    keys = ("Variant", "Table", "Chain", "Rule")
    cells = [{key.upper(): printable(row[key]) for key in keys} for row in rows]
    suffix = "would be removed by: ipv6natctl cleanup --leftovers" if dry_run else "removed."
    summary = f"{len(rows)} chains and rules {suffix}"
    return Result(value=rows, text=listing(cells, options, summary))


def _flush_without_daemon(error: BusError) -> Result:
    """Do the same as `ipv6natd -flush`, because the daemon is unreachable."""
    if os.geteuid() != 0:
        reason = "ipv6natd is not running" if is_not_running(error) else error.text
        note = f"{reason}, and only root can write rules: sudo ipv6natctl cleanup"
        return Result(code=EXIT_NO_PERMISSION, note=note)
    try:
        count = offline.flush(load(None, os.environ, {}).backend)
    except (ConfigError, FirewallError) as failure:
        return Result(code=EXIT_FAILED, note=str(failure))
    text = f"removed {count} chains and jumps" if count else "no rules to remove"
    text += "; ipv6natd is not reachable\n"
    note = f"{error.text}; if ipv6natd runs, it writes its rules again; to stop it: "
    note = "" if is_not_running(error) else note + "systemctl stop ipv6natd"
    return Result(value={"Removed": count}, text=text, note=note)


async def _call_interactively(daemon: DaemonClient, member: str) -> Any:
    with _polkit_agent():
        return await daemon.call(member, interactive=True)


def _polkit_agent() -> AbstractContextManager[None]:
    """Run pkttyagent, which asks for a password on this terminal, as systemctl does."""
    path = process.which("pkttyagent")
    if path is None or os.geteuid() == 0 or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return nullcontext()
    command = [path, "--fallback", "--process", str(os.getpid())]
    environment = {name: os.environ[name] for name in _AGENT_ENVIRONMENT if name in os.environ}
    return process.polkit_agent(command, environment)
