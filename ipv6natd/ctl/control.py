"""What changes something: resync, reload, cleanup. The daemon and polkit decide who may."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any

from ipv6natd.config import ConfigError, load
from ipv6natd.ctl.client import (
    FAILED,
    NO_PERMISSION,
    Answer,
    Daemon,
    How,
    no_daemon,
    not_running,
)
from ipv6natd.dbus.connection import BusError
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.sync import offline as flush
from ipv6natd.system import process
from ipv6natd.system.terminal import printable, table

_FOR_AGENT = ("TERM", "LANG", "LC_ALL", "DBUS_SYSTEM_BUS_ADDRESS")
_LEFTOVER = ("Variant", "Table", "Chain", "Rule")
SECONDS = 180.0
"""How long a change may take: it waits for the engine, the kernel, and a password."""


async def resync(daemon: Daemon, _how: How) -> Answer:
    """Compare everything, write what differs."""
    value = await _change(daemon, "Resync")
    text = "rules added: {RulesAdded}, removed: {RulesRemoved}, in {DurationMs} ms\n"
    return Answer(value=value, text=text.format_map(value))


async def reload(daemon: Daemon, _how: How) -> Answer:
    """Read the settings again."""
    await _change(daemon, "Reload")
    return Answer(value={}, text="the settings were read again and are in force\n")


async def cleanup(daemon: Daemon, how: How) -> Answer:
    """Take all rules out, also where no daemon runs."""
    if "leftovers" in how.flags:
        return await _leftovers(daemon, how)
    try:
        await _change(daemon, "Cleanup")
    except BusError as error:
        if not no_daemon(error):
            raise
        return _flushed(error)
    text = "all rules are removed, and none is written until: ipv6natctl resync\n"
    return Answer(value={}, text=text)


async def _leftovers(daemon: Daemon, how: How) -> Answer:
    """Show or take out what others have left; whose it is only the daemon can tell."""
    dry = "dry-run" in how.flags
    rows = await (daemon.call("ListLeftovers") if dry else _change(daemon, "CleanupLeftovers"))
    if not rows:
        return Answer(value=rows, text="nobody has left anything\n")
    header = ("VARIANT", "TABLE", "CHAIN", "RULE")
    cells = [tuple(printable(each[key]) for key in _LEFTOVER) for each in rows]
    text = table(header, cells, legend=how.legend, screen=how.screen)
    if how.legend:
        done = "would go: ipv6natctl cleanup --leftovers" if dry else "removed."
        text += f"\n{len(rows)} chains and rules {done}\n"
    return Answer(value=rows, text=text)


def _flushed(error: BusError) -> Answer:
    """What `ipv6natd -flush` does, where the daemon could not be asked."""
    if os.geteuid() != 0:
        why = "ipv6natd is not running" if not_running(error) else error.text
        note = f"{why}, and only root can write rules: sudo ipv6natctl cleanup"
        return Answer(value=None, text="", code=NO_PERMISSION, note=note)
    try:
        count = flush.flush(load(None, os.environ, {}).backend)
    except (ConfigError, FirewallError) as failure:
        return Answer(value=None, text="", code=FAILED, note=str(failure))
    text = f"removed {count} chains and jumps" if count else "there was nothing to remove"
    text += "; ipv6natd was not there to do it\n"
    if not_running(error):
        return Answer(value={"Removed": count}, text=text)
    note = f"{error.text}; if ipv6natd runs all the same, it writes its rules again: "
    return Answer(value={"Removed": count}, text=text, note=note + "systemctl stop ipv6natd")


async def _change(daemon: Daemon, member: str) -> Any:
    with _agent():
        return await daemon.call(member, timeout=SECONDS, interactive=True)


@contextlib.contextmanager
def _agent() -> Iterator[None]:
    """Somebody to ask for a password on this terminal, as systemctl has it."""
    path = process.find("pkttyagent")
    if path is None or os.geteuid() == 0 or not (sys.stdin.isatty() and sys.stderr.isatty()):
        yield
        return
    command = [path, "--fallback", "--process", str(os.getpid())]
    here = {name: os.environ[name] for name in _FOR_AGENT if name in os.environ}
    with process.agent(command, here):
        yield
