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
    to: str
    """As in `--to-destination`."""
    destination: str


_COUNTED = re.compile(rf"\[(\d+):\d+\] -A {PREFIX}\S* (.*)")
_OPTION = re.compile(r"(?:^| )(-p|--dport|--to-destination|-d) (\S+)")


def dnat_key(rule: str) -> DnatKey | None:
    """What tells a DNAT rule, from its text; None if it is none."""
    found = dict(_OPTION.findall(rule))
    if "--to-destination" not in found or "--dport" not in found:
        return None
    try:
        destination = str(IPv6Network(found.get("-d", "::/0")))
    except ValueError:
        return None
    return DnatKey(found.get("-p", ""), found["--dport"], found["--to-destination"], destination)


def connections(save: str) -> Map[DnatKey, int]:
    """Of our DNAT rules in the output of `ip6tables-save -c`: connections since each was written.

    Only the first packet of a flow passes nat.
    """
    found: dict[DnatKey, int] = {}
    for line in save_lines(save):
        if (hit := _COUNTED.fullmatch(line)) and (key := dnat_key(hit[2])):
            found[key] = int(hit[1])
    return found
