"""Packet counters of our DNAT rules.

Pure. The kernel formats rules in its own way, so a rule is found by a key and not by its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Map
from dataclasses import dataclass
from ipaddress import IPv6Network

from ipv6natd.netfilter.parse import save_lines
from ipv6natd.netfilter.rules import PREFIX


@dataclass(frozen=True, slots=True)
class DnatKey:
    """The fields that identify a DNAT rule, the same for our text and the kernel's."""

    protocol: str
    ports: str
    """As in `--dport`: "80" or "80:89"."""
    to_destination: str
    """As in `--to-destination`."""
    destination: str


_COUNTED_RULE = re.compile(rf"\[(\d+):\d+\] -A {PREFIX}\S* (.*)")
_OPTION = re.compile(r"(?:^| )(-p|--dport|--to-destination|-d) (\S+)")


def dnat_key(rule: str) -> DnatKey | None:
    """The key of a DNAT rule from its text; None for another rule."""
    options = dict(_OPTION.findall(rule))
    if "--to-destination" not in options or "--dport" not in options:
        return None
    try:
        destination = str(IPv6Network(options.get("-d", "::/0")))
    except ValueError:
        return None
    return DnatKey(
        options.get("-p", ""), options["--dport"], options["--to-destination"], destination
    )


def connection_counts(save: str) -> Map[DnatKey, int]:
    """Connections for our DNAT rules since the rules were written, from `ip6tables-save -c`.

    Only the first packet of a flow passes the nat table, so a packet is a connection.
    """
    counts: dict[DnatKey, int] = {}
    for line in save_lines(save):
        if (match := _COUNTED_RULE.fullmatch(line)) and (key := dnat_key(match[2])):
            counts[key] = int(match[1])
    return counts
