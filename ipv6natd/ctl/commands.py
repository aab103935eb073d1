"""The table of commands: what each is called, what it takes, and who does it."""

from __future__ import annotations

from ipv6natd.ctl import check, control, explain, metrics, monitor, show, ula
from ipv6natd.ctl.usage import Command

LOOK = "look (needs no root)"
SET_UP = "set up and watch"
CHANGE = "change (root, or whoever polkit allows)"

COMMANDS = {
    "status": Command(
        run=show.status,
        group=LOOK,
        about="state, counts and what is wrong, on one screen (the default)",
    ),
    "mappings": Command(
        run=show.mappings,
        group=LOOK,
        about="published ports that are forwarded, and to which container",
        filters=("container", "network", "port", "protocol"),
    ),
    "networks": Command(
        run=show.networks,
        group=LOOK,
        about="networks that are handled, with their warnings",
        filters=("network",),
    ),
    "skipped": Command(
        run=show.skipped,
        group=LOOK,
        about="ports that were wanted and are not forwarded, and what to do about it",
        filters=("container", "network"),
    ),
    "rules": Command(
        run=show.rules, group=LOOK, about="the rules in force, as ip6tables-restore reads them"
    ),
    "explain": Command(
        run=explain.explain,
        group=LOOK,
        about="why a container or a port of the host is reached as it is, or is not",
        argument="CONTAINER|PORT",
    ),
    "check": Command(
        run=check.check,
        group=LOOK,
        about="what IPv6 NAT hangs on here, and a command for each fault; root sees more",
    ),
    "monitor": Command(
        run=monitor.monitor,
        group=LOOK,
        about="what changes, as it changes, until interrupted",
    ),
    "resync": Command(
        run=control.resync,
        group=CHANGE,
        about="compare engine and rules now and repair what differs",
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
        about="a random private prefix for your networks, and the lines that use it",
    ),
}
