"""Conntrack entries of a real kernel are listed and deleted, one by one and by the thousand."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv6Address

import pytest

from ipv6natd.conntrack import entries as conntrack
from ipv6natd.conntrack import flush
from ipv6natd.conntrack.entries import Entry, delete_entries, list_entries
from ipv6natd.conntrack.flush import Conntrack
from ipv6natd.conntrack.stale import Exposure
from ipv6natd.model import Desired, Policy
from ipv6natd.policy.desired import desired
from ipv6natd.system import netlink
from tests.harness.build import container, endpoint, network, snapshot
from tests.harness.conntrack import entries, message_body

ZONES = ("zone", "orig-zone", "reply-zone")
MANY = 5000
"""More entries than one reply of the kernel contains."""

pytestmark = pytest.mark.usefixtures("namespace")


def insert(*entries: str) -> None:
    words = "".join(f"-I -s fd00::2 -d fd00::1 {each} -t 120\n" for each in entries)
    subprocess.run(["conntrack", "-R", "-"], input=words, text=True, check=True)


def in_time() -> float:
    return time.monotonic() + 5


def listed() -> list[Entry]:
    return list(list_entries(deadline=in_time()))


def shown_by_the_tool() -> str:
    words = ["conntrack", "-L", "-f", "ipv6"]
    told = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout
    # The tool prints ports of DCCP also if the kernel knows none: it tracks DCCP no more.
    return told.replace("sport=0 dport=0 ", "")


def originals(listed: Iterable[Entry]) -> list[bytes]:
    return [each.original.packed for each in listed]


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
    every = originals(listed())
    assert len(every) == len(there)
    while every:
        gone = every.pop(len(every) // 2)
        assert delete_entries([gone], deadline=in_time()) == 1
        assert sorted(originals(listed())) == sorted(every), gone


def test_entries_are_those_that_the_tool_lists() -> None:
    there = insert_supported(ENTRIES)
    told = shown_by_the_tool()
    assert sorted(listed()) == sorted(entries(told))
    assert len(listed()) == len(there)


@pytest.mark.parametrize("zone", ["--zone 3", "--orig-zone 3", "--reply-zone 3"])
def test_entries_with_a_zone_are_not_listed(zone: str) -> None:
    insert(f"{ENTRIES['udp']} {zone}", ENTRIES["its neighbour"])
    told = shown_by_the_tool()
    assert len(told.splitlines()) == 2
    assert listed() == entries(told)
    assert [each.original.source_port for each in listed()] == [2]


def test_entry_is_answered_after_a_packet_of_the_reply_direction() -> None:
    insert(f"{ENTRIES['tcp']} --status SEEN_REPLY", ENTRIES["udp"])
    assert "[UNREPLIED]" in shown_by_the_tool()
    assert {entry.original.protocol: entry.answered for entry in listed()} == {6: True, 17: False}


def test_messages_of_the_kernel_are_those_that_the_unit_tests_use() -> None:
    """All of it up to CTA_STATUS, also of entries with a zone."""
    for entry in (*ENTRIES.values(), *(f"{ENTRIES['udp']} --{zone} 3" for zone in ZONES)):
        try:
            insert(entry)
        except subprocess.CalledProcessError:
            continue  # not supported here
        (body,) = netlink.dump(
            conntrack._NETLINK_NETFILTER, conntrack._CT_GET, conntrack._FAMILY, deadline=in_time()
        )
        expected = message_body(shown_by_the_tool())[:-4]
        assert body[: len(expected)] == expected, entry
        subprocess.run(["conntrack", "-F"], check=True)


def test_delete_entries_removes_thousands_and_ignores_missing_entries() -> None:
    insert(*(f"-p udp --sport {port} --dport 53" for port in range(1, MANY + 1)))
    every = originals(listed())
    assert len(every) == len(set(every)) == MANY
    assert delete_entries(every[::2], deadline=in_time()) == MANY // 2
    assert delete_entries(every, deadline=in_time()) == MANY // 2
    assert listed() == []
    assert delete_entries([], deadline=in_time()) == 0


def test_flush_deletes_thousands_of_stale_entries_while_it_lists_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one list: the kernel continues it also if its last entry is gone."""
    lists: list[float] = []

    def listed_once(*, deadline: float) -> Iterator[Entry]:
        lists.append(deadline)
        return list_entries(deadline=deadline)

    monkeypatch.setattr(flush, "list_entries", listed_once)
    monkeypatch.setattr(flush, "BATCH_SIZE", 300)
    insert(*(f"-p udp --sport {port} --dport {53 + port % 2}" for port in range(1, MANY + 1)))
    others = {it.original.packed for it in listed() if it.original.destination_port == 54}
    flows = Conntrack(lambda: frozenset({IPv6Address("fd00::1")}))
    assert flows.flush_stale_flows(None, with_port("53:53/udp"), Exposure.NONE)
    assert len(lists) == 1
    assert {*originals(listed())} == others


def with_port(port: str) -> Desired:
    """The decisions for one container with this published port, without the userland proxy."""
    place = network(name="x", subnet="fd00:a::/64")
    web = container(on=[endpoint(on=place, address="fd00:a::2")], ports=[port])
    return desired(snapshot(place, web, userland_proxy=False), Policy())


def test_unchanged_entries_are_listed_while_others_come_and_go() -> None:
    insert(*(f"-p udp --sport {port} --dport 53" for port in range(1, MANY + 1)))
    every = set(originals(listed()))

    def change() -> None:
        for _ in range(10):
            insert(*(f"-p tcp --sport {port} --dport 53 --state LISTEN" for port in range(1, 500)))
            added = [each for each in originals(listed()) if each not in every]
            assert delete_entries(added, deadline=in_time()) == 499

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        while not changing.done():
            assert every <= set(originals(listed()))
        changing.result()


def test_delete_entries_raises_the_error_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    insert(ENTRIES["udp"])
    every = originals(listed())
    monkeypatch.setattr(conntrack, "_CT_DELETE", 99 << 8)  # a table that the kernel does not have
    with pytest.raises(OSError, match="Invalid argument"):
        delete_entries(every, deadline=in_time())


def test_list_raises_the_error_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "_CT_GET", 99 << 8)
    with pytest.raises(OSError, match="Invalid argument"):
        listed()


def test_list_and_deletion_end_at_their_deadline() -> None:
    insert(ENTRIES["udp"])
    every = originals(listed())
    with pytest.raises(TimeoutError):
        list(list_entries(deadline=time.monotonic()))
    with pytest.raises(TimeoutError):
        delete_entries(every, deadline=time.monotonic())
