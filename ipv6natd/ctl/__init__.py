"""ipv6natctl: what the daemon shows on the bus, for people and for scripts.

What the daemon knows comes over the bus, so that reading needs no root and a stopped daemon stays
stopped. The sentences themselves are made in `report`. Read `commands` first, then `client`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ipv6natd.ctl.client import FAILED, Answer, Daemon, How, Run, explained
from ipv6natd.ctl.commands import COMMANDS
from ipv6natd.ctl.usage import read
from ipv6natd.dbus.connection import BusError
from ipv6natd.system.terminal import printable

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """The command, as a function of its arguments; usage errors raise SystemExit(2)."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # LANG=C must not end in a traceback
    try:
        try:
            name, how = read(argv, COMMANDS, os.environ)
        finally:
            sys.stdout.flush()  # of --help and --version
    except OSError as error:
        return _unwritten(error)
    try:
        answer = asyncio.run(_answered(COMMANDS[name].run, how))
    except BusError as error:
        code, text = explained(error, shlex.join(("ipv6natctl", *argv)))
        answer = Answer(value=None, text="", code=code, note=text)
    except KeyboardInterrupt:
        return INTERRUPTED
    try:
        if how.json == "off":
            sys.stdout.write(answer.text)
        elif answer.value is not None:
            print(_json(answer.value, how.json))
        sys.stdout.flush()
    except OSError as error:
        return _unwritten(error)
    if answer.note:
        print(printable(answer.note), file=sys.stderr)
    return answer.code


def _unwritten(error: OSError) -> int:
    # What is left of it must not be tried again as the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"the answer could not be written: {error.strerror}", file=sys.stderr)
    return FAILED


async def _answered(run: Run, how: How) -> Answer:
    daemon = Daemon()
    try:
        answer: Answer = await run(daemon, how)
        return answer
    finally:
        daemon.close()


def _json(value: Any, mode: str) -> str:
    if mode == "short":
        return json.dumps(value, separators=(",", ":"))
    return json.dumps(value, indent=2)
