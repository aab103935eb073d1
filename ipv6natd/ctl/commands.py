"""The table of commands: what each is called, what it takes, and who does it."""

from __future__ import annotations

from ipv6natd.ctl import check as checking
from ipv6natd.ctl import control as steering
from ipv6natd.ctl import explain as explaining
from ipv6natd.ctl import metrics as measured
from ipv6natd.ctl import monitor as watching
from ipv6natd.ctl import show as lists
from ipv6natd.ctl import ula_prefix as prefix
from ipv6natd.ctl.usage import Command

LOOK = "look (needs no root)"
SET_UP = "set up and watch"
CHANGE = "change (root, or whoever polkit allows)"

COMMANDS = {
    "status": Command(
        run=lists.status,
        group=LOOK,
        about="state, counts and what is wrong, on one screen (the default)",
    ),
    "mappings": Command(
        run=lists.mappings,
        group=LOOK,
        about="published ports that are forwarded, and to which container",
        filters=("container", "network", "port", "protocol"),
    ),
    "networks": Command(
        run=lists.networks,
        group=LOOK,
        about="networks that are handled, with their warnings",
        filters=("network",),
    ),
    "skipped": Command(
        run=lists.skipped,
        group=LOOK,
        about="ports that were wanted and are not forwarded, and what to do about it",
        filters=("container", "network"),
    ),
    "rules": Command(
        run=lists.rules, group=LOOK, about="the rules in force, as ip6tables-restore reads them"
    ),
    "explain": Command(
        run=explaining.explain,
        group=LOOK,
        about="why a container or a port of the host is reached as it is, or is not",
        argument="CONTAINER|PORT",
    ),
    "check": Command(
        run=checking.check,
        group=LOOK,
        about="what IPv6 NAT hangs on here, and a command for each fault; root sees more",
    ),
    "monitor": Command(
        run=watching.monitor,
        group=LOOK,
        about="what changes, as it changes, until interrupted",
    ),
    "resync": Command(
        run=steering.resync,
        group=CHANGE,
        about="compare engine and rules now and repair what differs",
    ),
    "reload": Command(
        run=steering.reload,
        group=CHANGE,
        about="read the configuration again",
    ),
    "cleanup": Command(
        run=steering.cleanup,
        group=CHANGE,
        about="remove all rules, and write none until resync",
        flags=("leftovers", "dry-run"),
    ),
    "metrics": Command(
        run=measured.metrics,
        group=SET_UP,
        about="counts and times for Prometheus, as text",
    ),
    "ula": Command(
        run=prefix.make,
        group=SET_UP,
        about="a random private prefix for your networks, and the lines that use it",
    ),
}
