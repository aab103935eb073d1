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

from ipv6natd.ctl.client import (
    EXIT_FAILED,
    CommandFunction,
    DaemonClient,
    Options,
    Result,
    explain_error,
)
from ipv6natd.ctl.commands import COMMANDS
from ipv6natd.ctl.usage import parse_arguments
from ipv6natd.dbus.connection import BusError
from ipv6natd.system.terminal import printable

EXIT_INTERRUPTED = 130


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
            name, options = parse_arguments(argv, COMMANDS, os.environ)
        finally:
            sys.stdout.flush()  # of --help and --version
    except OSError as error:
        return _report_write_error(error)
    try:
        result = asyncio.run(_run_command(COMMANDS[name].run, options))
    except BusError as error:
        code, text = explain_error(error, shlex.join(("ipv6natctl", *argv)))
        result = Result(value=None, text="", code=code, note=text)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    try:
        if options.json == "off":
            sys.stdout.write(result.text)
        elif result.value is not None:
            print(_json(result.value, options.json))
        sys.stdout.flush()
    except OSError as error:
        return _report_write_error(error)
    if result.note:
        print(printable(result.note), file=sys.stderr)
    return result.code


def _report_write_error(error: OSError) -> int:
    # What is left of it must not be tried again as the interpreter ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"the answer could not be written: {error.strerror}", file=sys.stderr)
    return EXIT_FAILED


async def _run_command(run: CommandFunction, options: Options) -> Result:
    daemon = DaemonClient()
    try:
        result: Result = await run(daemon, options)
        return result
    finally:
        daemon.close()


def _json(value: Any, mode: str) -> str:
    if mode == "short":
        return json.dumps(value, separators=(",", ":"))
    return json.dumps(value, indent=2)
