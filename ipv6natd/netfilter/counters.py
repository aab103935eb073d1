"""Packet counters of DNAT rules, ours and Docker's.

Pure. The kernel formats rules in its own way, so a rule is found by a key and not by its text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Map
from typing import NamedTuple

from ipv6natd.netfilter.parse import save_lines
from ipv6natd.netfilter.rules import PREFIX


class DnatKey(NamedTuple):
    """The options that identify a DNAT rule, the same in our text and the kernel's."""

    protocol: str
    dport: str
    to_destination: str
    destination: str


_COUNTERS = re.compile(r"^\[\d+:\d+\] ", re.MULTILINE)
_COUNTED_RULE = re.compile(rf"\[(\d+):\d+\] -A {PREFIX}\S* (.*)")
_ENGINE_RULE = re.compile(r"\[(\d+):\d+\] (-A DOCKER .*)")
_OPTION = re.compile(r"(?:^| )(-p|--dport|--to-destination|-d) (\S+)")


def without_counters(save: str) -> str:
    """The text of `ip6tables-save -c` without the counters of rules."""
    return _COUNTERS.sub("", save)


def dnat_key(rule: str) -> DnatKey | None:
    """The key of a DNAT rule from its text; None for another rule."""
    options = {"-p": "", "-d": ""} | dict(_OPTION.findall(rule))
    if "--to-destination" not in options or "--dport" not in options:
        return None
    return DnatKey(options["-p"], options["--dport"], options["--to-destination"], options["-d"])


def connection_counts(save: str) -> Map[DnatKey, int]:
    """Connections for our DNAT rules since the rules were written, from `ip6tables-save -c`.

    Only the first packet of a flow passes the nat table, so a packet is a connection.
    """
    counts: dict[DnatKey, int] = {}
    for line in save_lines(save):
        if (match := _COUNTED_RULE.fullmatch(line)) and (key := dnat_key(match[2])):
            counts[key] = int(match[1])
    return counts


def engine_rules(save: str) -> Map[tuple[str, str], tuple[str, int]]:
    """Docker's own DNAT rules from `ip6tables-save -c`: (protocol, "[fd00::2]:80") -> the rule, and
    its connections."""
    found: dict[tuple[str, str], tuple[str, int]] = {}
    for line in save_lines(save):
        if (match := _ENGINE_RULE.fullmatch(line)) and (key := dnat_key(match[2])):
            found.setdefault((key.protocol, key.to_destination), (match[2], int(match[1])))
    return found
