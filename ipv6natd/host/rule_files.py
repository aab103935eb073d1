"""Files of other programs that write rules at each boot.

A program that saves the rules in force saves ours too, such as `netfilter-persistent save`. After a
removal of ipv6natd, nobody replaces such rules, and their ports lead to whatever container has the
address by then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from ipv6natd.netfilter.rules import PREFIX

RULE_FILES = (
    Path("/etc/iptables/rules.v6"),  # netfilter-persistent
    Path("/etc/iptables/ip6tables.rules"),  # ip6tables.service of Arch
    Path("/etc/sysconfig/ip6tables"),  # ip6tables.service of Fedora
    Path("/etc/nftables.conf"),  # nftables.service
    Path("/etc/sysconfig/nftables.conf"),  # nftables.service of Fedora
)


def files_with_our_rules(files: Iterable[Path] = RULE_FILES) -> Iterator[str]:
    """A sentence for each file that contains rules of ipv6natd, or may contain some."""
    for file in files:
        try:
            text = file.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            yield f"cannot read {file}, which may contain rules of ipv6natd: {error.strerror}"
            continue
        if PREFIX.encode() in text:
            yield (
                f"{file} contains rules of ipv6natd, which come back at the next boot: save the "
                f"rules again now, or delete the chains and jumps with {PREFIX} there"
            )
