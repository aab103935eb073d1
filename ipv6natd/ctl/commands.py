"""The table of commands: name, function, help line, and what options the command takes."""

from __future__ import annotations

from dataclasses import dataclass

from ipv6natd.ctl import check, control, explain, metrics, monitor, report, show, top, ula
from ipv6natd.ctl.client import CommandFunction


@dataclass(frozen=True, slots=True)
class Command:
    """A command: its function, its help line, and what it takes."""

    run: CommandFunction
    about: str
    options: tuple[str, ...] = ()
    """Options that not all commands have, without their dashes."""
    argument: str = ""
    """The name of the argument; empty if the command takes none."""


GROUPS = {
    "read (no root needed)": {
        "status": Command(show.status, "state, counts and faults, on one screen (the default)"),
        "mappings": Command(
            show.mappings,
            "forwarded ports and their containers",
            ("container", "network", "port", "protocol"),
        ),
        "networks": Command(
            show.networks, "managed networks, with their manager and their warnings", ("network",)
        ),
        "skipped": Command(
            show.skipped,
            "ports and networks that are not forwarded, with reason and remedy",
            ("container", "network"),
        ),
        "findings": Command(
            show.findings, "faults of this host and of networks, each with a remedy", ("network",)
        ),
        "rules": Command(show.rules, "the rules in force, in the format of ip6tables-restore"),
        "explain": Command(
            explain.explain,
            "why a container or a host port is reachable or not",
            ("from",),
            argument="CONTAINER|PORT",
        ),
        "check": Command(
            check.check, "the same faults and what is correct, also without the daemon"
        ),
        "top": Command(top.top, "mappings by their connections, live on a terminal; q ends it"),
        "monitor": Command(monitor.monitor, "changes as they occur, until interrupted"),
    },
    "change (root, or permitted by polkit)": {
        "resync": Command(
            control.resync, "compare engine and kernel now, and write the differences"
        ),
        "reload": Command(control.reload, "read the configuration again"),
        "cleanup": Command(
            control.cleanup,
            "remove all rules, and write none until resync",
            ("leftovers", "dry-run"),
        ),
    },
    "set-up and monitoring": {
        "metrics": Command(metrics.metrics, "counts and times for Prometheus, as text"),
        "report": Command(
            report.report,
            "one JSON text for a bug report, with other names and public addresses",
            ("unchanged",),
        ),
        "ula": Command(ula.make, "a random private prefix, and the lines for Docker that use it"),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
