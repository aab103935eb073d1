"""The table of commands: name, function, help line, and what options the command takes."""

from __future__ import annotations

from ipv6natd.ctl import check, control, explain, metrics, monitor, show, ula
from ipv6natd.ctl.usage import Command

READ = "read (no root needed)"
SET_UP = "set-up and monitoring"
CHANGE = "change (root, or permitted by polkit)"

COMMANDS = {
    "status": Command(
        run=show.status,
        group=READ,
        about="state, counts and faults, on one screen (the default)",
    ),
    "mappings": Command(
        run=show.mappings,
        group=READ,
        about="forwarded ports and their containers",
        filters=("container", "network", "port", "protocol"),
    ),
    "networks": Command(
        run=show.networks,
        group=READ,
        about="managed networks, with their manager and their warnings",
        filters=("network",),
    ),
    "skipped": Command(
        run=show.skipped,
        group=READ,
        about="ports and networks that are not forwarded, with reason and remedy",
        filters=("container", "network"),
    ),
    "rules": Command(
        run=show.rules, group=READ, about="the rules in force, in the format of ip6tables-restore"
    ),
    "explain": Command(
        run=explain.explain,
        group=READ,
        about="why a container or a host port is reachable or not",
        argument="CONTAINER|PORT",
    ),
    "check": Command(
        run=check.check,
        group=READ,
        about="faults of this host, each with a remedy; root sees more",
    ),
    "monitor": Command(
        run=monitor.monitor,
        group=READ,
        about="changes as they occur, until interrupted",
    ),
    "resync": Command(
        run=control.resync,
        group=CHANGE,
        about="compare engine and kernel now, and write the differences",
    ),
    "reload": Command(
        run=control.reload,
        group=CHANGE,
        about="read the configuration again",
    ),
    "cleanup": Command(
        run=control.cleanup,
        group=CHANGE,
        about="remove all rules, and write none until resync",
        flags=("leftovers", "dry-run"),
    ),
    "metrics": Command(
        run=metrics.metrics,
        group=SET_UP,
        about="counts and times for Prometheus, as text",
    ),
    "ula": Command(
        run=ula.make,
        group=SET_UP,
        about="a random private prefix, and the lines for Docker that use it",
    ),
}
