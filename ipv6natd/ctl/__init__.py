"""ipv6natctl: shows and controls the daemon over the bus, for people and for scripts.

The state comes over the bus, so that reading needs no root, and no command starts a stopped daemon.
`report` makes the sentences. Read `commands` first, then `client`.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import closing

from ipv6natd.system.libraries import needed_libraries
from ipv6natd.system.terminal import printable

with needed_libraries("ipv6natctl"):
    from ipv6natd.ctl.client import (
        EXIT_FAILED,
        EXIT_NOT_RUNNING,
        DaemonClient,
        Options,
        Result,
        explain_error,
        is_not_running,
        json_text,
    )
    from ipv6natd.ctl.commands import COMMANDS
    from ipv6natd.ctl.usage import parse_arguments
    from ipv6natd.dbus.connection import BusError

EXIT_INTERRUPTED = 130


def main() -> None:
    """Run one command and exit with its exit code; 2 for wrong usage."""
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """Run the command and return its exit code; raises SystemExit(2) for wrong usage."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `ipv6natctl ... | head` is no error
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # no traceback for LANG=C
    try:
        name, options = parse_arguments(argv, os.environ)
    except OSError as error:
        return _report_write_error(error)
    try:
        result = asyncio.run(_run_command(name, options))
    except BusError as error:
        code, text = explain_error(error, shlex.join(("ipv6natctl", *argv)))
        result = Result(code=code, note=text)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    try:
        if options.json == "off":
            sys.stdout.write(result.text)
        elif result.value is not None:
            print(json_text(result.value, options.json))
        sys.stdout.flush()
    except OSError as error:
        return _report_write_error(error)
    if result.note:
        print(printable(result.note), file=sys.stderr)
    return result.code


def _report_write_error(error: OSError) -> int:
    # The interpreter must not write the rest of the output again when it ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"cannot write the output: {error.strerror}", file=sys.stderr)
    return EXIT_FAILED


async def _run_command(name: str, options: Options) -> Result:
    with closing(DaemonClient()) as daemon:
        try:
            return await COMMANDS[name].run(daemon, options)
        except BusError as error:
            if not is_not_running(error) or not (failure := await daemon.unit_failure()):
                raise
    note = f"ipv6natd has failed: {failure}; correct this, then: systemctl start ipv6natd"
    return Result(code=EXIT_NOT_RUNNING, note=note)
