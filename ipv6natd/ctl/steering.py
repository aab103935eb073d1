"""What changes something: resync, reload, cleanup. The daemon decides who may."""

from __future__ import annotations

from ipv6natd.ctl.asking import Answer, Daemon, How

SECONDS = 120.0
"""How long a change may take: it waits for the engine, the kernel, and a password."""


async def resync(daemon: Daemon, _how: How) -> Answer:
    """Compare everything, write what differs."""
    value = await daemon.call("Resync", timeout=SECONDS)
    text = "rules added: {RulesAdded}, removed: {RulesRemoved}, in {DurationMs} ms\n"
    return Answer(value=value, text=text.format_map(value))
