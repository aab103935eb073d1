"""Conntrack entries of a real kernel are deleted, one by one and by the thousand."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from ipaddress import IPv6Address

import pytest

from ipv6natd.conntrack import ctnetlink
from ipv6natd.conntrack.ctnetlink import delete_entries
from ipv6natd.conntrack.stale import Tuple, parse_entries

MANY = 5000
"""More entries than one reply of the kernel contains."""

pytestmark = pytest.mark.usefixtures("namespace")


def insert(*entries: str) -> None:
    words = "".join(f"-I -s fd00::2 -d fd00::1 {each} -t 120\n" for each in entries)
    subprocess.run(["conntrack", "-R", "-"], input=words, text=True, check=True)


def listed() -> list[Tuple]:
    words = ["conntrack", "-L", "-f", "ipv6"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    return [each.original for each in parse_entries(done.stdout)]


ENTRIES = {
    "udp": "-p udp --sport 1 --dport 2",
    "its neighbour": "-p udp --sport 2 --dport 1",
    "translated": "-p udp --sport 1 --dport 5353 --reply-src fd00::9 --reply-dst fd00::2 "
    "--reply-port-src 53 --reply-port-dst 1",
    "tcp": "-p tcp --sport 1 --dport 2 --state ESTABLISHED",
    "sctp": "-p sctp --sport 1 --dport 2 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2",
    "dccp": "-p dccp --sport 1 --dport 2 --state OPEN --role client",
    "udplite": "-p udplite --sport 1 --dport 2",
    "echo": "-p icmpv6 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 7",
    "gre": "-p gre --srckey 1 --dstkey 255",
    "another": "-p 4",
}


def insert_supported(entries: Iterable[str]) -> list[str]:
    """Insert each entry that this kernel and its conntrack support; return their names."""
    there = []
    for each in entries:
        try:
            insert(ENTRIES[each])
        except subprocess.CalledProcessError:
            continue
        there.append(each)
    return there


def test_delete_entries_removes_only_the_given_entry_of_each_protocol() -> None:
    there = insert_supported(ENTRIES)
    assert set(there) >= {"udp", "its neighbour", "translated", "tcp", "echo", "another"}
    every = listed()
    assert len(every) == len(there)
    while every:
        gone = every.pop(len(every) // 2)
        assert delete_entries([gone], timeout=5) == 1
        assert sorted(listed()) == sorted(every), gone


def test_delete_entries_removes_thousands_and_ignores_missing_entries() -> None:
    insert(*(f"-p udp --sport {port} --dport 53" for port in range(1, MANY + 1)))
    every = listed()
    assert len(every) == MANY
    assert delete_entries(every[::2], timeout=5) == MANY // 2
    assert delete_entries(every, timeout=5) == MANY // 2
    assert listed() == []
    assert delete_entries([], timeout=5) == 0


def test_delete_entries_raises_the_error_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctnetlink, "_CT_DELETE", 99 << 8)  # a table that the kernel does not have
    address = IPv6Address("fd00::1")
    with pytest.raises(OSError, match="Invalid argument"):
        delete_entries([Tuple(17, address, address, (1, 2))], timeout=5)
