"""How often a DNAT rule was taken: its text, ours or the kernel's -> what tells it from others.

Pure. The kernel words a rule in its own way, so the whole text is never compared.
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
    """What tells one DNAT rule from another, in the kernel's words as in ours."""

    protocol: str
    ports: str
    """As in `--dport`: "80" or "80:89"."""
    to_destination: str
    """As in `--to-destination`."""
    destination: str


_COUNTED_RULE = re.compile(rf"\[(\d+):\d+\] -A {PREFIX}\S* (.*)")
_OPTION = re.compile(r"(?:^| )(-p|--dport|--to-destination|-d) (\S+)")


def dnat_key(rule: str) -> DnatKey | None:
    """What tells a DNAT rule, from its text; None if it is none."""
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
    """Of our DNAT rules in the output of `ip6tables-save -c`: connections since each was written.

    Only the first packet of a flow passes nat.
    """
    counts: dict[DnatKey, int] = {}
    for line in save_lines(save):
        if (match := _COUNTED_RULE.fullmatch(line)) and (key := dnat_key(match[2])):
            counts[key] = int(match[1])
    return counts
