"""The command ipv6natd: its flags, exit status, and the one-shot -flush."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import sys
import traceback
from collections.abc import MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from ipv6natd import __version__
from ipv6natd.config import KEYS, ConfigError, Key, Settings, load
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.host.rule_files import files_with_our_rules
from ipv6natd.model import BOOLEANS
from ipv6natd.sync.forwarding import forwarding_is_on
from ipv6natd.sync.offline import close_networks, flush
from ipv6natd.system import logs
from ipv6natd.system.instance import OtherInstanceError, only_instance
from ipv6natd.system.libraries import needed_libraries
from ipv6natd.system.process import BASE_ENVIRONMENT
from ipv6natd.system.terminal import printable

log = logging.getLogger("ipv6natd")

EXIT_FAILURE, EXIT_CONFIGURATION = 1, 78
ENVIRONMENT = frozenset(
    {
        *("DOCKER_HOST", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "DBUS_SYSTEM_BUS_ADDRESS"),
        *("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "STATE_DIRECTORY"),
        *("RUNTIME_DIRECTORY", "XTABLES_LOCKFILE", "XTABLES_LIBDIR", "LANG", "LC_ALL", "TZ"),
        "IPV6NATD_CONTAINER",
    }
)
"""The variables in use: of Docker, systemd, iptables and the image, for language and time zone."""
_CAP_NET_ADMIN = 12
_DESCRIPTION = """\
Give Docker containers IPv6 NAT the way Docker gives them IPv4 NAT.

Containers on networks with a ULA subnet (fc00::/7) get their published ports forwarded over IPv6
with the client's address kept. Their outgoing packets are masqueraded; all else is closed."""
_EPILOG = """\
Flags take one dash or two. A boolean flag may have a value: -flag=true or -flag=false.
Flags override the environment (DOCKER_HOST, DOCKER_CERT_PATH, DOCKER_TLS_VERIFY), which overrides
/etc/ipv6natd/ipv6natd.toml and /etc/ipv6natd/conf.d/*.toml; every key of the file is also a flag.

examples:
  ipv6natd                            publish ports of the local engine until stopped
  ipv6natd -debug                     also log every rule that is added or removed
  ipv6natd -endpoint tcp://10.0.0.2:2376 -cert-path /etc/docker/tls -tls-verify
  ipv6natd -flush                     remove all rules of ipv6natd and exit

exit status: 0 success, 1 failure, 2 wrong usage, 78 wrong configuration
`ipv6natctl` shows the state of a running ipv6natd."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command and exit with its status."""
    scrub_environment(os.environ)
    with needed_libraries("ipv6natd"):
        sys.exit(run(sys.argv[1:] if argv is None else argv))


def scrub_environment(environ: MutableMapping[str, str]) -> None:
    """Remove all variables that the manual does not name.

    The libraries read others, with proxies, certificates and accounts, and start tools from $PATH.
    """
    for name in set(environ) - ENVIRONMENT:
        del environ[name]
    environ["PATH"] = BASE_ENVIRONMENT["PATH"]


def run(argv: Sequence[str]) -> int:
    """Run the command; returns the exit status. Usage errors raise SystemExit(2)."""
    options = vars(_parser().parse_args(argv))
    explicit = Path(options.pop("config")) if "config" in options else None
    flush_only = options.pop("flush")
    reload = partial(load, explicit, os.environ, options)
    try:
        settings = reload()
    except ConfigError as error:
        print(f"ipv6natd: {printable(str(error))}", file=sys.stderr)
        _set_exit_status_text(str(error))
        return EXIT_CONFIGURATION
    logs.start(debug=settings.debug)
    if not _may_write_rules():
        text = (
            "writing rules needs root or CAP_NET_ADMIN; run ipv6natd with sudo or as a service, "
            "or its container with --cap-add NET_ADMIN"
        )
        print(f"ipv6natd: {text}", file=sys.stderr)
        return EXIT_FAILURE
    try:
        return _flush(settings) if flush_only else _serve(settings, reload)
    except (FirewallError, OtherInstanceError) as error:
        log.error("%s", error)
        _set_exit_status_text(str(error))
    except ModuleNotFoundError:
        raise
    except Exception as error:
        log.error("internal error", exc_info=error)
        text = f"stopped by an internal error, please report it: {_cause(error)}"
        log.critical("%s", text)
        _set_exit_status_text(text)
    return EXIT_FAILURE


def _cause(error: BaseException) -> str:
    """The first error of a group, and where it was raised, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    location = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if "ipv6natd" in frame.filename:
            location = f" at {Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__}: {error}{location}"


def _set_exit_status_text(text: str) -> None:
    """Set the text that `systemctl status` shows until the service starts again."""
    from ipv6natd.system.sd_notify import Notifier

    notifier = Notifier()
    notifier.status(text)
    notifier.close()


def _may_write_rules() -> bool:
    """True if this process has CAP_NET_ADMIN; a user other than root can have it too."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    (effective,) = re.findall(r"^CapEff:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return bool(int(effective, 16) & 1 << _CAP_NET_ADMIN)


class _Parser(argparse.ArgumentParser):
    """Accepts no abbreviations: allow_abbrev=False covers only two dashes, and -f would flush."""

    def error(self, message: str) -> NoReturn:
        # The message quotes arguments, which may contain control characters.
        super().error(printable(message))

    def _get_option_tuples(
        self, option_string: str
    ) -> list[tuple[argparse.Action, str, str | None]]:
        del option_string
        return []


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ipv6natd",
        usage="ipv6natd [flags]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    group = parser.add_argument_group("flags")
    group.add_argument("-h", "-help", "--help", action="help", help="show this and exit")
    group.add_argument(
        "-version",
        "--version",
        action="version",
        version=f"ipv6natd {__version__}",
        help="show the version and exit",
    )
    group.add_argument(
        *_dashes("config"), metavar="FILE", help="read this file instead of those in /etc/ipv6natd"
    )
    group.add_argument(
        *_dashes("flush"),
        action="store_true",
        default=False,
        help="remove all rules of ipv6natd, without engine and bus, and exit",
    )
    for key in KEYS:
        _add_setting(group, key)
    return parser


def _add_setting(group: argparse._ArgumentGroup, key: Key) -> None:
    default = key.default
    if isinstance(default, bool):
        text, metavar = "on" if default else "off", "BOOL"
        options: dict[str, Any] = {"type": _boolean, "nargs": "?", "const": True}
    else:
        values = default if isinstance(default, tuple) else (default or "",)
        text, metavar = ",".join(map(str, values)), key.name.upper()
        options = {"type": {tuple: _list, int: _integer, dict: _table}.get(type(default), str)}
    about = f"{key.about[0].lower()}{key.about[1:-1]} (default: {text or 'none'})"
    names = _dashes(key.name.replace("_", "-"))
    group.add_argument(*names, dest=key.name, metavar=metavar, help=about, **options)


def _dashes(name: str) -> tuple[str, str]:
    return f"-{name}", f"--{name}"


def _boolean(text: str) -> bool:
    """A boolean as in Go's flag package, which docker-ipv6nat uses."""
    if text not in BOOLEANS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return BOOLEANS[text]


def _list(text: str) -> list[str]:
    return text.split(",")


def _table(text: str) -> dict[str, str]:
    """ "192.0.2.10=2001:db8::10,…" as the table of the configuration file."""
    return dict(pair.partition("=")[::2] for pair in text.split(","))


def _integer(text: str) -> Any:
    # Other text is passed on: the error of `config` names the legal values.
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else text


def _serve(settings: Settings, reload: partial[Settings]) -> int:
    with only_instance():
        closed = close_networks(settings.backend)
        # Imported here: -flush and -version need neither the Docker library nor the D-Bus library.
        from ipv6natd.daemon import Daemon

        return asyncio.run(Daemon(settings, reload, *closed).run())


def _flush(settings: Settings) -> int:
    count = flush(settings.backend)
    log.info(f"removed {count} chains and jumps" if count else "nothing to remove")
    if count and forwarding_is_on():
        log.warning(
            "IPv6 forwarding stays on, because ipv6natd did not switch it on: other hosts can now "
            "reach containers by their own addresses; to switch it off: "
            "sysctl -w net.ipv6.conf.all.forwarding=0"
        )
    for sentence in files_with_our_rules():
        log.warning(sentence)
    return 0
