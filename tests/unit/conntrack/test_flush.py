"""Conntrack.flush_stale_flows: lists, deletions, failures, and when the reconciler calls it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import replace
from ipaddress import IPv6Address

import pytest

from ipv6natd.conntrack import flush as conntrack
from ipv6natd.conntrack.entries import Entry, Tuple
from ipv6natd.conntrack.flush import Conntrack
from ipv6natd.conntrack.sockets import ends
from ipv6natd.conntrack.stale import Exposure
from ipv6natd.model import Container, Desired, Network, Policy
from ipv6natd.policy.desired import desired
from ipv6natd.sync import reconciler
from ipv6natd.sync.applier import Applier
from ipv6natd.sync.reconciler import Reconciler
from tests.harness.build import container, endpoint, network, snapshot
from tests.harness.conntrack import entries
from tests.harness.fake_firewall import FakeFirewall
from tests.harness.fake_host import FakeHost
from tests.harness.waiting import background, until
from tests.unit.sync.test_reconciler import FakeFacts

X = network(name="x", subnet="fd00:a::/64")
NOTHING = desired(snapshot(X, userland_proxy=False), Policy())
EMPTY = desired(snapshot(), Policy())
UDP, SCTP, TCP, MOVED = (
    desired(
        snapshot(
            X,
            container(on=[endpoint(on=X, address=address)], ports=[port]),
            userland_proxy=False,
        ),
        Policy(),
    )
    for port, address in (
        ("5353:53/udp", "fd00:a::2"),
        ("5353:53/sctp", "fd00:a::2"),
        ("5353:53/tcp", "fd00:a::2"),
        ("5353:53/udp", "fd00:a::3"),
    )
)
TO_HOST, TO_CONTAINER = (
    f"udp      17 29 src=2001:db8::2 dst=2001:db8::1 sport=40000 dport=5353 src={address} "
    f"dst=2001:db8::2 sport={port} dport=40000 mark=0 use=1"
    for address, port in (("2001:db8::1", 5353), ("fd00:a::2", 53))
)
BATCH = ("ip", "-6", "-force", "-batch", "-")
QUESTION = entries(TO_HOST)[0].original.packed
OnDelete = Callable[[Iterable[bytes]], int]


class Host:
    """A kernel that lists `entries`, or raises `list_error`, and deletes all entries on the first
    request, or does what `on_delete` does."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.list_error: OSError | None = None
        self.lists = 0
        self.listed = 0
        """The number of entries of all lists."""
        self.deleted: list[list[bytes]] = []
        self.ip_calls: list[tuple[tuple[str, ...], str]] = []
        """The arguments of `ip` and its standard input."""
        self.deleted_before_ip: list[int] = []
        """Before each call of `ip`, the number of deletions."""
        self.on_delete: OnDelete = self._delete_all
        self.end_of_list: OSError | None = None
        """Raised after the last entry."""
        self.unaccepted: set[Tuple] = set()
        self.ended: list[list[bytes]] = []
        """The connections that were to end: for each, the packed original tuple."""
        self.end_error: OSError | None = None

    def set_entries(self, *lines: str) -> None:
        self.entries = entries("\n".join(lines))

    def list(self, *, deadline: float) -> Iterator[Entry]:
        assert 0 < deadline - time.monotonic() <= conntrack.SCAN_TIMEOUT
        self.lists += 1
        if self.list_error:
            raise self.list_error
        for entry in tuple(self.entries):
            self.listed += 1
            yield entry
        if self.end_of_list:
            raise self.end_of_list

    def _delete_all(self, originals: Iterable[bytes]) -> int:
        self.entries = []
        return len(list(originals))

    def delete(self, originals: Iterable[bytes], *, deadline: float) -> int:
        assert 0 < deadline - time.monotonic() <= conntrack.SCAN_TIMEOUT
        self.deleted.append([*originals])
        return self.on_delete(originals)

    def find(self, wanted: Set[bytes], *, deadline: float) -> dict[bytes, bytes]:
        assert 0 < deadline - time.monotonic() <= conntrack.SCAN_TIMEOUT
        unaccepted = {ends(original): original.packed for original in self.unaccepted}
        return {known: packed for known, packed in unaccepted.items() if known in wanted}

    def end(self, sockets: Iterable[bytes], *, deadline: float) -> int:
        assert 0 < deadline - time.monotonic() <= conntrack.SCAN_TIMEOUT
        self.ended.append([*sockets])
        self.unaccepted.clear()
        if self.end_error:
            raise self.end_error
        return len(self.ended[-1])

    def run_ip(self, *words: str, stdin: str = "", **_: object) -> str:
        self.ip_calls.append((words, stdin))
        self.deleted_before_ip.append(len(self.deleted))
        return ""


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    made = Host()
    monkeypatch.setattr(conntrack, "list_entries", made.list)
    monkeypatch.setattr(conntrack, "delete_entries", made.delete)
    monkeypatch.setattr(conntrack, "find_unaccepted", made.find)
    monkeypatch.setattr(conntrack, "destroy", made.end)
    monkeypatch.setattr(conntrack, "output_of", made.run_ip)
    return made


@pytest.fixture
def flows() -> Conntrack:
    return Conntrack(lambda: frozenset({IPv6Address("2001:db8::1")}))


def flush(flows: Conntrack, old: Desired | None, new: Desired, exposure: Exposure) -> bool:
    """Flush, and scan again until nothing is stale; False if a request failed."""
    if not flows.flush_stale_flows(old, new, exposure):
        return False
    while flows.needs_scan:
        if not flows.scan_again():
            return False
    return True


def test_flush_leaves_an_entry_that_is_not_stale(host: Host, flows: Conntrack) -> None:
    host.set_entries(TO_CONTAINER)
    assert flush(flows, None, UDP, Exposure.NONE)
    assert (host.lists, host.deleted, host.ip_calls) == (1, [], [])


def test_flush_deletes_a_stale_entry_and_scans_again(host: Host, flows: Conntrack) -> None:
    host.set_entries(TO_HOST)
    assert flush(flows, None, UDP, Exposure.NONE)
    assert (host.lists, host.deleted) == (2, [[QUESTION]])


def test_flush_deletes_the_reversed_entry_of_a_reply_in_flight(
    host: Host, flows: Conntrack
) -> None:
    """The port is not published any more and does not change any more."""
    answer = (
        "udp      17 29 src=fd00:a::2 dst=2001:db8::2 sport=53 dport=40000 src=2001:db8::2 "
        "dst=2001:db8::1 sport=40000 dport=53 mark=0 use=1"
    )

    def forget(originals: Iterable[bytes]) -> int:
        host.entries = entries(answer) if QUESTION in originals else []
        return 1

    host.set_entries(TO_CONTAINER)
    host.on_delete = forget
    assert flush(flows, UDP, NOTHING, Exposure.NONE)
    assert host.deleted == [[QUESTION], [entries(answer)[0].original.packed]]


def test_flush_deletes_the_entries_and_the_neighbours_of_a_new_network(
    host: Host, flows: Conntrack
) -> None:
    to_network, to_host = "src=2001:db8::2 dst=fd00:a::2", "src=2001:db8::2 dst=2001:db8::1"
    host.set_entries(f"ip 4 29 {to_network} {to_network}", f"ip 4 29 {to_host} {to_host}")
    flush(flows, EMPTY, desired(snapshot(X), Policy()), Exposure.NONE)
    # Again after the deletion: until then, the entry lets packets wait for a neighbour.
    assert host.ip_calls == [(BATCH, f"neigh flush dev {X.bridge} nud incomplete\n")] * 2
    assert host.deleted_before_ip == [0, 1]
    assert host.deleted == [[entries(f"ip 4 29 {to_network} {to_network}")[0].original.packed]]


def test_flush_deletes_flows_that_were_opened_without_rules(host: Host, flows: Conntrack) -> None:
    entry = "tcp 6 9 ESTABLISHED src={0} dst={1} sport=40000 dport=80 src={1} dst={0} sport=80 "
    host.set_entries(
        *(
            entry.format(source, destination) + "dport=40000 [ASSURED] mark=0 use=1"
            for source, destination in (
                ("2001:db8::2", "fd00:a::2"),
                ("2001:db8::1", "fd00:a::2"),  # the host itself
                ("fd00:a::3", "fd00:a::2"),  # a neighbour
                ("fd00:b::3", "fd00:a::2"),
                ("2001:db8::2", "2001:db8::1"),
                ("fd00:a::2", "2001:db8::2"),
            )
        )
    )
    opened = host.entries
    assert flush(flows, UDP, UDP, Exposure.OPEN)
    assert host.deleted == [[opened[0].original.packed, opened[3].original.packed]]


def test_flush_of_many_networks_lists_the_table_once(host: Host, flows: Conntrack) -> None:
    nets = [network(name=f"n{n}", subnet=f"fd00:{n}::/64") for n in range(1, 20)]
    assert flush(flows, NOTHING, desired(snapshot(*nets), Policy()), Exposure.OPEN)
    assert host.lists == 1
    (_, lines), again = host.ip_calls
    assert again == (BATCH, lines)
    assert sorted(lines.splitlines()) == sorted(
        f"neigh flush dev {n.bridge} nud incomplete" for n in nets
    )


def test_flush_deletes_the_neighbour_entry_of_a_new_container(host: Host, flows: Conntrack) -> None:
    flush(flows, UDP, MOVED, Exposure.NONE)
    assert host.ip_calls == [(BATCH, f"neigh del fd00:a::3 dev {X.bridge}\n")]


def test_flush_lists_entries_only_if_one_can_be_stale(host: Host, flows: Conntrack) -> None:
    for count, (old, new) in enumerate(((NOTHING, SCTP), (UDP, SCTP), (UDP, MOVED)), 1):
        flush(flows, old, new, Exposure.NONE)
        assert host.lists == count
    host.lists = 0
    flush(flows, UDP, UDP, Exposure.NONE)
    flush(flows, TCP, TCP, Exposure.NONE)
    flush(flows, None, EMPTY, Exposure.OPEN)
    assert host.lists == 0


WAITING, SERVED, UNANSWERED = (
    f"tcp 6 99 ESTABLISHED src=2001:db8::2 dst=2001:db8::1 sport={port} dport=5353 {mark}"
    f"src={address} dst=2001:db8::2 sport={answers} dport={port} mark=0 use=1"
    for port, mark, address, answers in (
        (1, "", "2001:db8::1", 5353),
        (2, "", "fd00:a::2", 53),
        (3, "[UNREPLIED] ", "2001:db8::1", 5353),
    )
)


def test_flush_ends_connections_that_began_before_the_rule(host: Host, flows: Conntrack) -> None:
    """Before their entries are deleted: the reset must pass. The next SYN meets the rule."""
    host.set_entries(WAITING, SERVED, UNANSWERED)
    waiting, _, unanswered = (entry.original for entry in host.entries)
    host.unaccepted = {waiting}
    host.on_delete = lambda originals: host._delete_all(originals) if host.ended else 0
    assert flush(flows, NOTHING, TCP, Exposure.NONE)
    assert host.ended == [[waiting.packed]]
    assert host.deleted == [[waiting.packed, unanswered.packed]]


def test_flush_ends_a_connection_that_is_established_after_its_entry_was_deleted(
    host: Host, flows: Conntrack
) -> None:
    """Its first packet had no answer when the entry was listed."""
    host.set_entries(UNANSWERED)
    (unanswered,) = (entry.original for entry in host.entries)

    def answered_meanwhile(originals: Iterable[bytes]) -> int:
        host.unaccepted = {unanswered}
        return host._delete_all(originals)

    host.on_delete = answered_meanwhile
    assert flush(flows, NOTHING, TCP, Exposure.NONE)
    assert (host.deleted, host.ended) == ([[unanswered.packed]], [[unanswered.packed]])


def test_flush_keeps_a_connection_that_a_service_of_the_host_accepted(
    host: Host, flows: Conntrack
) -> None:
    """It had the port before, and has closed its listener."""
    host.set_entries(WAITING, SERVED)
    assert flush(flows, NOTHING, TCP, Exposure.NONE)
    assert (host.ended, host.deleted) == ([], [])


def test_flush_ends_no_connection_that_the_proxy_serves(host: Host, flows: Conntrack) -> None:
    host.set_entries(WAITING, SERVED, UNANSWERED)
    unanswered = host.entries[2].original.packed
    old, new = (replace(each, userland_proxy=True) for each in (NOTHING, TCP))
    assert flush(flows, old, new, Exposure.NONE)
    assert (host.ended, host.deleted) == ([], [[unanswered]])


def test_kernel_that_cannot_end_connections_is_one_warning(
    host: Host, flows: Conntrack, caplog: pytest.LogCaptureFixture
) -> None:
    """Their conntrack entries are deleted: a client that sends gets a reset from the container."""
    host.end_error = OSError(95, "Operation not supported")
    for _ in range(2):
        host.set_entries(WAITING)
        host.unaccepted = {host.entries[0].original}
        host.deleted.clear()
        assert flush(flows, NOTHING, TCP, Exposure.NONE)
        assert host.deleted == [[entries(WAITING)[0].original.packed]]
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "INET_DIAG_DESTROY" in record.getMessage()
    assert len(host.ended) == 1


def test_later_scan_follows_the_newest_rules(host: Host, flows: Conntrack) -> None:
    """A new container has got the address of the removed one, and with it its port."""
    host.set_entries(TO_CONTAINER)
    host.on_delete = lambda originals: len(list(originals))
    assert flows.flush_stale_flows(UDP, NOTHING, Exposure.NONE)
    assert flows.needs_scan
    assert host.deleted == [[QUESTION]]
    assert flows.flush_stale_flows(NOTHING, UDP, Exposure.NONE)
    assert not flows.needs_scan
    assert host.deleted == [[QUESTION]]


def test_scan_that_fails_is_repeated(host: Host, flows: Conntrack) -> None:
    host.set_entries(TO_HOST)
    assert flows.flush_stale_flows(None, UDP, Exposure.NONE)
    host.set_entries(TO_HOST)
    host.list_error = PermissionError(1, "Operation not permitted")
    assert not flows.scan_again()
    host.list_error = None
    assert flows.needs_scan
    assert flows.scan_again()
    assert host.deleted == [[QUESTION], [QUESTION]]


def test_flush_stops_after_max_scans_if_the_entry_returns(host: Host, flows: Conntrack) -> None:
    host.set_entries(TO_HOST)
    host.on_delete = lambda originals: len(list(originals))
    assert flush(flows, None, UDP, Exposure.NONE)
    assert host.lists == conntrack.MAX_SCANS
    assert len(host.deleted) == conntrack.MAX_SCANS


# Floods.

FLOOD = [TO_HOST.replace("40000", str(port)) for port in range(1, 26)]
"""25 stale entries."""


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "BATCH_SIZE", 10)


def delete_listed(host: Host, seen: list[int]) -> OnDelete:
    """Delete the requested entries; add to `seen` how many had been listed by then."""

    def delete(originals: Iterable[bytes]) -> int:
        requested = {*originals}
        seen.append(host.listed)
        host.entries = [it for it in host.entries if it.original.packed not in requested]
        return len(requested)

    return delete


@pytest.mark.usefixtures("small_batches")
def test_flood_is_deleted_in_batches_while_it_is_listed(host: Host, flows: Conntrack) -> None:
    """All stale entries at once would take more memory than the service may have."""
    seen: list[int] = []
    host.set_entries(TO_CONTAINER, *FLOOD)
    host.on_delete = delete_listed(host, seen)
    assert flows.flush_stale_flows(None, UDP, Exposure.NONE)
    assert seen == [11, 21, 26]
    assert [len(batch) for batch in host.deleted] == [10, 10, 5]
    assert host.entries == entries(TO_CONTAINER)


@pytest.mark.usefixtures("small_batches")
def test_flood_that_one_scan_cannot_list_is_no_failure(
    host: Host, flows: Conntrack, caplog: pytest.LogCaptureFixture
) -> None:
    """The next scan continues, and looks for the same entries as the first."""
    to_network = "ip 4 29 src=2001:db8::2 dst=fd00:a::2 src=2001:db8::2 dst=fd00:a::2"
    host.set_entries(*FLOOD)
    host.on_delete = delete_listed(host, [])
    host.end_of_list = TimeoutError()
    assert flows.flush_stale_flows(UDP, UDP, Exposure.OPEN) is False  # none of them is stale
    assert flows.flush_stale_flows(None, UDP, Exposure.OPEN)
    assert flows.needs_scan
    assert host.entries == []
    host.set_entries(to_network, FLOOD[0])
    host.end_of_list = None
    assert flows.scan_again()
    assert flows.needs_scan
    assert host.entries == []
    assert flows.scan_again()
    assert not flows.needs_scan
    assert len(caplog.records) == 1


def test_list_that_does_not_end_is_a_failure_and_what_was_found_is_deleted(
    host: Host, flows: Conntrack
) -> None:
    for error in (TimeoutError(), InterruptedError(4, "the table changed")):
        host.set_entries(*FLOOD)
        host.on_delete = delete_listed(host, [])
        host.end_of_list = error
        assert not flows.flush_stale_flows(None, UDP, Exposure.NONE)
        assert host.entries == []
        assert not flows.needs_scan


def test_reversed_entry_of_a_deletion_before_a_failure_is_deleted(
    host: Host, flows: Conntrack
) -> None:
    answer = (
        "udp 17 29 src=fd00:a::2 dst=2001:db8::2 sport=53 dport=40000 src=2001:db8::2 "
        "dst=2001:db8::1 sport=40000 dport=53"
    )
    still = entries(answer.replace("40000", "40001"))
    host.set_entries(TO_CONTAINER)
    host.on_delete = delete_listed(host, [])
    host.end_of_list = TimeoutError()
    assert not flows.flush_stale_flows(UDP, NOTHING, Exposure.NONE)
    host.entries = entries(answer) + still
    host.end_of_list = None
    assert flows.flush_stale_flows(None, NOTHING, Exposure.NONE)
    assert host.entries == still


def test_number_of_remembered_entries_is_bounded(
    host: Host, flows: Conntrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "MAX_REMEMBERED", 7)
    host.set_entries(*FLOOD)
    assert flows.flush_stale_flows(None, UDP, Exposure.NONE)
    assert len(flows._deleted_replies) == 7
    host.set_entries(*(WAITING.replace("sport=1 ", f"sport={port} ") for port in range(1, 20)))
    host.unaccepted = {entry.original for entry in host.entries}
    host.deleted.clear()
    assert flows.flush_stale_flows(NOTHING, TCP, Exposure.NONE)
    assert [len(batch) for batch in host.ended] == [19]
    assert flows.scan_again()
    assert (flows.needs_scan, flows._deleted_replies) == (False, set())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            PermissionError(1, "Operation not permitted"),
            "list the conntrack entries: Operation not",
        ),
        (InterruptedError(4, "the table changed"), "list the conntrack entries: the table changed"),
        (TimeoutError("timed out"), "did not list the conntrack entries within 10 s"),
    ],
)
def test_failed_list_is_one_warning_with_the_message_of_the_kernel(
    host: Host,
    flows: Conntrack,
    caplog: pytest.LogCaptureFixture,
    error: OSError,
    words: str,
) -> None:
    host.list_error = error
    assert not flush(flows, None, UDP, Exposure.NONE)
    assert not flush(flows, None, UDP, Exposure.NONE)  # the same failure is one warning
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert words in record.getMessage()
    host.list_error = None
    assert flush(flows, None, UDP, Exposure.NONE)
    host.list_error = error
    assert not flush(flows, None, UDP, Exposure.NONE)
    assert len([record for record in caplog.records if record.levelname == "WARNING"]) == 2


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(1, "Operation not permitted"), "Operation not permitted"),
        (OSError(97, "Address family not supported by protocol"), "not supported"),
        (TimeoutError(), "did not delete the conntrack entries within 10 s"),
    ],
)
def test_failed_deletion_is_a_warning(
    host: Host, flows: Conntrack, caplog: pytest.LogCaptureFixture, error: OSError, words: str
) -> None:
    def forget(_: Iterable[bytes]) -> int:
        raise error

    host.set_entries(TO_HOST)
    host.on_delete = forget
    assert not flush(flows, None, UDP, Exposure.NONE)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert words in record.getMessage()


# When the reconciler calls it.


class Loop:
    """A reconciler with a firewall in memory. `flushes` has the ports before and after, for each
    call of `flush_stale_flows`."""

    def __init__(self) -> None:
        self.flushes: list[tuple[list[int] | None, list[int]]] = []
        self.exposures: list[Exposure] = []
        self.firewall = FakeFirewall()
        self.facts = FakeFacts()
        self.passes = 0
        self.done = True
        """The result of the next flushes."""
        self.host = FakeHost(flush=self._flush)
        self.loop = Reconciler(
            engine=self.facts,
            applier=Applier(lambda: self.firewall, self.host),
            observer=self,
            policy=Policy(),
        )

    def changed(self, *_: object) -> None:
        """See Observer."""
        self.passes += 1

    def _flush(self, old: Desired | None, new: Desired, exposure: Exposure) -> bool:
        # The rules are in force before flows are flushed.
        assert all(f"--dport {port} " in self.firewall.dump() for port in ports(new))
        self.flushes.append((None if old is None else ports(old), ports(new)))
        self.exposures.append(exposure)
        return self.done

    async def passed(self, *facts: Network | Container, how: Callable[[], None]) -> None:
        self.facts.have(*facts)
        before = self.passes
        how()
        await until(lambda: self.passes > before)


def ports(wish: Desired) -> list[int]:
    return [mapping.host_port for mapping in wish.mappings]


def test_reconciler_flushes_flows_after_the_rules_are_written() -> None:
    async def scenario() -> None:
        bench = Loop()
        trigger, verify = bench.loop.trigger, bench.loop.verify
        udp = container(on=[X], ports=["5353:53/udp"])
        other = container(name="other", on=[X], ports=["80:80"])
        async with background(bench.loop.run()):
            await bench.passed(X, how=trigger)
            # A flow from before the first pass may have outlived its mapping.
            assert bench.flushes == [(None, [])]
            bench.flushes.clear()
            await bench.passed(X, other, how=trigger)
            assert bench.flushes == [([], [80])]
            bench.flushes.clear()
            await bench.passed(X, other, how=trigger)
            assert bench.flushes == []
            await bench.passed(X, udp, how=trigger)
            await bench.passed(X, udp, how=trigger)
            await bench.passed(X, udp, how=verify)
            assert bench.flushes == [([80], [5353])]
            # Flows that began while our rules were missing began without them.
            bench.firewall.flush()
            await bench.passed(X, udp, how=verify)
            assert bench.flushes[1:] == [([5353], [5353]), (None, [5353])]
            del bench.flushes[1]
            # The pass after a failed one flushes the flows of both.
            bench.firewall.fail_next = "no room"
            await bench.passed(X, how=trigger)
            assert bench.flushes[2:] == []
            await bench.passed(X, how=verify)
            assert bench.flushes[2:] == [([5353], [])]
            # After the removal of all rules the flows since then are unknown.
            await bench.loop.remove()
            await bench.passed(X, udp, how=trigger)
            assert bench.flushes[3:] == [(None, [5353])]

    asyncio.run(scenario())


def test_first_pass_flushes_flows_of_unknown_mappings() -> None:
    async def scenario() -> None:
        bench = Loop()
        udp = container(on=[X], ports=["5353:53/udp"])
        async with background(bench.loop.run()):
            await bench.passed(X, udp, how=bench.loop.trigger)
        assert bench.flushes == [(None, [5353])]

    asyncio.run(scenario())


def test_failed_flush_is_repeated_by_the_next_pass_and_a_new_address_flushes_all() -> None:
    async def scenario() -> None:
        bench = Loop()
        udp = container(on=[X], ports=["5353:53/udp"])
        async with background(bench.loop.run()):
            await bench.passed(X, how=bench.loop.trigger)
            bench.flushes.clear()
            bench.done = False
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert bench.flushes == [([], [5353])]
            bench.flushes.clear()
            bench.done = True
            # No other change: one flush from the last mappings, one from unknown mappings.
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert bench.flushes == [([], [5353]), (None, [5353])]
            bench.flushes.clear()
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert bench.flushes == []
            await bench.passed(X, udp, how=bench.loop.addresses_changed)
            assert bench.flushes == [([5353], [5353]), (None, [5353])]
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert len(bench.flushes) == 2
            bench.flushes.clear()
            # The second flush would fail too, so the next pass repeats it.
            bench.done = False
            bench.firewall.flush()
            await bench.passed(X, udp, how=bench.loop.verify)
            assert bench.flushes == [([5353], [5353])]

    asyncio.run(scenario())


def test_flush_gets_exposure_open_if_rules_were_missing() -> None:
    async def scenario() -> None:
        bench = Loop()
        udp = container(on=[X], ports=["5353:53/udp"])
        async with background(bench.loop.run()):
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert bench.exposures == [Exposure.OPEN]  # the first pass
            await bench.passed(X, how=bench.loop.trigger)
            assert bench.exposures == [Exposure.OPEN, Exposure.NONE]
            bench.firewall.flush()
            await bench.passed(X, how=bench.loop.verify)
            assert bench.exposures[2:] == [Exposure.OPEN, Exposure.NONE]
        again = Loop()
        again.firewall = again.loop.applier.firewall = bench.firewall
        async with background(again.loop.run()):
            await again.passed(X, how=again.loop.trigger)
            assert again.exposures == [Exposure.NONE]

    asyncio.run(scenario())


def test_failed_flush_is_repeated_without_an_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        bench = Loop()
        udp = container(on=[X], ports=["5353:53/udp"])
        monkeypatch.setattr(reconciler, "MIN_RETRY_PAUSE", 0.01)
        async with background(bench.loop.run()):
            await bench.passed(X, how=bench.loop.trigger)
            bench.flushes.clear()
            bench.done = False
            await bench.passed(X, udp, how=bench.loop.trigger)
            await until(lambda: len(bench.flushes) > 2)
            bench.done = True
            bench.flushes.clear()
            await until(lambda: (None, [5353]) in bench.flushes)
            flushes = list(bench.flushes)
            await asyncio.sleep(0.2)
            assert bench.flushes == flushes

    asyncio.run(scenario())


def test_later_scan_waits_for_no_pass_and_no_pass_waits_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        bench, scans = Loop(), [False, True]
        udp = container(on=[X], ports=["5353:53/udp"])

        def scan() -> bool:
            bench.host.needs_scan = len(scans) > 1
            return scans.pop()

        bench.host.scan, bench.host.needs_scan = scan, True
        monkeypatch.setattr(reconciler, "SCAN_PAUSE", 60)
        monkeypatch.setattr(reconciler, "MIN_RETRY_PAUSE", 0.01)
        async with background(bench.loop.run()):
            await bench.passed(X, how=bench.loop.trigger)
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert len(scans) == 2
            monkeypatch.setattr(reconciler, "SCAN_PAUSE", 0.01)
            await bench.passed(X, udp, how=bench.loop.trigger)
            bench.flushes.clear()
            await until(lambda: not scans)
            # The second scan failed: all flows are checked.
            await until(lambda: (None, [5353]) in bench.flushes)

    asyncio.run(scenario())
