"""The command line of ipv6natctl: one table of options, their combinations, and the help."""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ipv6natd import __version__
from ipv6natd.ctl.client import CommandFunction, Options
from ipv6natd.model import Protocol
from ipv6natd.system.terminal import PIPE, Screen, printable

JSON_MODES = ("short", "pretty", "off")
FILTERS = {
    "container": ("NAME", "only this container: a name, a pattern such as 'web*', or an id"),
    "network": ("NAME", "only this network: a name or a pattern"),
    "port": ("PORT", "only mappings that contain this host port"),
    "protocol": ("PROTOCOL", f"only {', '.join(Protocol)}"),
}
"""Option -> the name of its value, and its help line."""
FLAGS = {
    "leftovers": "with cleanup: remove what docker-ipv6nat or a switched-off engine left",
    "dry-run": "with cleanup --leftovers: only list them",
}

EXAMPLES = """\
examples:
  ipv6natctl                                   is there a fault?
  ipv6natctl explain 8080                      why is port 8080 reachable or not?
  ipv6natctl mappings --network 'shop*' --protocol udp
  ipv6natctl mappings --json=short | jq -r '.[] | select(.HostPort == 443) | .ContainerName'
  ipv6natctl skipped                           what is not forwarded, and why?
  sudo ipv6natctl check                        faults of this host, with remedies
  ipv6natctl monitor                           print changes as they occur
  ipv6natctl status >/dev/null || echo "IPv6 NAT has a fault"

exit status:
  0 success, no fault            1 failed, not synced, or no row matches
  2 wrong usage                  3 ipv6natd is not running
  4 permission denied

See ipv6natctl(1), ipv6natd.toml(5) for the settings, org.ipv6natd1(5) for the bus.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command: its function, its help line, and what it takes."""

    run: CommandFunction
    about: str
    group: str
    argument: str = ""
    """The name of the argument; empty if the command takes none."""
    filters: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


Commands = Mapping[str, Command]


def parse_arguments(
    argv: Sequence[str], commands: Commands, environ: Mapping[str, str]
) -> tuple[str, Options]:
    """The command and its options; raises SystemExit(2) for wrong usage, with a sentence."""
    parser = _parser(commands)
    arguments = parser.parse_args(_with_json_mode(argv))
    command = commands.get(arguments.command)
    if command is None:
        close = difflib.get_close_matches(arguments.command, commands, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f": one of {', '.join(commands)}"
        parser.error(f"{arguments.command!r} is not a command{hint}")
    filters = {name: getattr(arguments, name) for name in FILTERS if getattr(arguments, name)}
    flags = frozenset(arguments.flags)
    for option in (*filters, *sorted(flags)):
        if option not in (*command.filters, *command.flags):
            takers = " or ".join(
                name for name, taker in commands.items() if option in (*taker.filters, *taker.flags)
            )
            parser.error(f"--{option} goes with {takers}, not with {arguments.command}")
    if flags == {"dry-run"}:
        parser.error("--dry-run goes with cleanup --leftovers")
    if command.argument and not arguments.argument:
        parser.error(f"{arguments.command} needs an argument: {command.argument}")
    if arguments.argument and not command.argument:
        parser.error(f"{arguments.command} takes no argument: {arguments.argument!r}")
    return arguments.command, Options(
        argument=arguments.argument,
        filters=filters,
        json=arguments.json,
        legend=not arguments.no_legend,
        flags=flags,
        screen=_screen(environ),
    )


def _parser(commands: Commands) -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ipv6natctl",
        usage="ipv6natctl [OPTION...] [COMMAND]",
        description=f"Show and control IPv6 NAT for Docker.\n\n{_command_list(commands)}",
        epilog=EXAMPLES,
        formatter_class=_Formatter,
        allow_abbrev=False,
    )
    parser.add_argument("command", nargs="?", default="status", help=argparse.SUPPRESS)
    parser.add_argument("argument", nargs="?", default="", help=argparse.SUPPRESS)
    for name, (value, about) in FILTERS.items():
        parse = {"port": _port, "protocol": _protocol}.get(name, _name)
        parser.add_argument(f"--{name}", type=parse, metavar=value, help=about)
    for name, about in FLAGS.items():
        parser.add_argument(
            f"--{name}", dest="flags", action="append_const", const=name, default=[], help=about
        )
    _add_output_options(parser)
    parser.add_argument("--version", action="version", version=f"ipv6natctl {__version__}")
    return parser


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        choices=JSON_MODES,
        default="off",
        metavar="MODE",
        help="JSON instead of text: short (one line), pretty or off; --json alone is -j",
    )
    parser.add_argument(
        "-j",
        dest="json",
        action="store_const",
        const="pretty" if sys.stdout.isatty() else "short",
        help="--json=pretty on a terminal, --json=short elsewhere",
    )
    parser.add_argument(
        "--no-legend", action="store_true", help="leave out the header and the count of rows"
    )


class _Parser(argparse.ArgumentParser):
    """Prints one sentence for an error, without the usage."""

    def _print_message(self, message: str, file: Any = None) -> None:
        # Since Python 3.12 argparse ignores errors of the write, such as a full disk.
        (file or sys.stderr).write(message)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"ipv6natctl: {printable(message)}; see ipv6natctl --help\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        # A fixed width, so that a test can compare the help with the manual page.
        super().__init__(prog, max_help_position=24, width=100)


def _command_list(commands: Commands) -> str:
    """The commands, by group."""
    lines: list[str] = []
    for group in dict.fromkeys(command.group for command in commands.values()):
        lines.append(f"{group}:")
        for name, command in commands.items():
            if command.group == group:
                words = f"{name} {command.argument}".strip()
                lines.append(f"  {words:<24}{command.about}")
        lines.append("")
    return "\n".join(lines[:-1])


def _name(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("a name is missing")
    return text


def _port(text: str) -> int:
    # Not str.isdigit, which accepts digits of other scripts.
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:9]) < 65536 and len(text) < 9):
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: a number from 1 to 65535")
    return int(text)


def _protocol(text: str) -> str:
    if text not in tuple(Protocol):
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(Protocol)}")
    return text


def _with_json_mode(argv: Sequence[str]) -> list[str]:
    # With nargs="?" argparse would take the command in `--json mappings` as the mode.
    words: list[str] = []
    for word in argv:
        if words and words[-1] == "--json" and word in JSON_MODES:
            words[-1] = f"--json={word}"
        else:
            words.append(word)
    return ["-j" if word == "--json" else word for word in words]


def _screen(environ: Mapping[str, str]) -> Screen:
    """The properties of the output. NO_COLOR as on no-color.org: any value except the empty one."""
    if not sys.stdout.isatty():
        return PIPE
    plain = environ.get("NO_COLOR") or environ.get("TERM", "dumb") == "dumb"
    return Screen(colour=not plain, columns=shutil.get_terminal_size((0, 0)).columns)
