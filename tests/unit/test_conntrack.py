"""The tool behind the flows: what it is told, and what becomes of a sync when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from ipv6natd import conntrack
from ipv6natd.conntrack import Conntrack
from ipv6natd.desired import desired
from ipv6natd.firewall.fake import FakeFirewall
from ipv6natd.model import Container, Desired, ManagedBy, Network, Policy
from ipv6natd.reconcile import Reconciler
from tests.lab import until as reached
from tests.unit.build import container, endpoint, network, snapshot
from tests.unit.test_reconcile import FakeFacts
from tests.unit.waiting import background, until

X = network(name="x", subnet="fd00:a::/64")
NOTHING = desired(snapshot(X, userland_proxy=False), Policy())
UDP, SCTP, MOVED = (
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
        ("5353:53/udp", "fd00:a::3"),
    )
)
TO_HOST, TO_CONTAINER = (
    f"udp      17 29 src=2001:db8::2 dst=2001:db8::1 sport=40000 dport=5353 src={address} "
    f"dst=2001:db8::2 sport={port} dport=40000 mark=0 use=1"
    for address, port in (("2001:db8::1", 5353), ("fd00:a::2", 53))
)
LIST = "-L -f ipv6 -w 0 -p udp"
EXACTLY = (
    "-p udp --orig-src 2001:db8::2 --orig-port-src 40000 --orig-dst 2001:db8::1 "
    "--orig-port-dst 5353 --reply-src 2001:db8::1 --reply-port-src 5353"
)


class Tool:
    """A conntrack that lists what it is given, once, and answers a removal with a script."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "conntrack"
        self.have("")

    def have(self, entries: str, removal: str = "exit 0") -> None:
        (self.folder / "entries").write_text(entries)
        self.path.write_text(
            "#!/bin/sh\n"
            f'cd "{self.folder}"; echo "$*" >>calls\n'
            "[ $1 = -R ] && cat >>calls\n"
            f"[ $1 != -L ] && {{ : >entries; {removal}; }}\n"
            "cat entries\n"
        )
        self.path.chmod(0o755)

    @property
    def calls(self) -> list[str]:
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return lines


@pytest.fixture
def tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tool:
    monkeypatch.setattr(conntrack, "DIRECTORIES", (str(tmp_path),))
    return Tool(tmp_path)


@pytest.fixture
def flows() -> Conntrack:
    return Conntrack(lambda: frozenset({IPv6Address("2001:db8::1")}))


def test_what_is_right_is_left(tool: Tool, flows: Conntrack) -> None:
    tool.have(TO_CONTAINER)
    flows.follow(None, UDP)
    assert tool.calls == [LIST]


def test_what_is_wrong_is_removed_and_the_proxy_looked_after(tool: Tool, flows: Conntrack) -> None:
    tool.have(TO_HOST)
    flows.follow(None, UDP)
    look = LIST
    assert tool.calls == [look, "-R -", f"-D -f ipv6 -w 0 {EXACTLY}", look]


def test_what_came_for_a_network_before_it_was_closed_is_forgotten(
    tool: Tool, flows: Conntrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(conntrack, "said", lambda *words, **_: asked.append(words))
    empty = desired(snapshot(), Policy())
    flows.follow(empty, desired(snapshot(X), Policy()))
    assert asked == [("ip", "-6", "neigh", "flush", "dev", X.bridge)]
    assert tool.calls == [
        f"-L -f ipv6 -w 0 --orig-dst {X.subnets[0]}",
        *("-R -", f"-D -f ipv6 -w 0 --orig-src {X.subnets[0]}"),
    ]


def test_what_a_networks_own_containers_began_goes_on_when_it_becomes_ours(
    tool: Tool, flows: Conntrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "said", lambda *_words, **_: "")
    ours = desired(snapshot(X), Policy())
    engines = replace(ours, networks=(replace(X, managed_by=ManagedBy.ENGINE),))
    flows.follow(engines, ours)
    assert tool.calls == [f"-L -f ipv6 -w 0 --orig-dst {X.subnets[0]}"]


def test_who_got_in_while_rules_were_out_is_put_out(
    tool: Tool, flows: Conntrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "said", lambda *_words, **_: "")
    entry = "tcp 6 9 ESTABLISHED src={0} dst={1} sport=40000 dport=80 src={1} dst={0} sport=80 "
    tool.have(
        "\n".join(
            entry.format(source, destination) + "dport=40000 [ASSURED] mark=0 use=1"
            for source, destination in (
                ("2001:db8::2", "fd00:a::2"),
                ("2001:db8::2", "fd00:a::2"),
                ("2001:db8::1", "fd00:a::2"),  # the host itself
                ("fd00:a::3", "fd00:a::2"),  # a neighbour
                ("fd00:b::3", "fd00:a::2"),
                ("2001:db8::2", "2001:db8::1"),
                ("fd00:a::2", "2001:db8::2"),
            )
        )
    )
    assert flows.follow(UDP, UDP, True)
    assert tool.calls == [
        f"-L -f ipv6 -w 0 --orig-dst {X.subnets[0]}",
        "-R -",
        "-D -f ipv6 -w 0 --orig-src 2001:db8::2 --orig-dst fd00:a::2",
        "-D -f ipv6 -w 0 --orig-src fd00:b::3 --orig-dst fd00:a::2",
    ]


def test_of_many_networks_the_table_is_listed_once(
    tool: Tool, flows: Conntrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "said", lambda *_words, **_: "")
    nets = [network(name=f"n{n}", subnet=f"fd00:{n}::/64") for n in range(1, 20)]
    assert flows.follow(NOTHING, desired(snapshot(*nets), Policy()), True)
    assert [each.split()[0] for each in tool.calls] == ["-L", "-R", *["-D"] * len(nets)]


def test_a_container_that_came_is_looked_for_anew_on_its_link(
    tool: Tool, flows: Conntrack, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[tuple[str, ...], str]] = []
    monkeypatch.setattr(conntrack, "said", lambda *w, stdin="", **_: asked.append((w, stdin)))
    flows.follow(UDP, MOVED)
    batch = ("ip", "-6", "-force", "-batch", "-")
    assert asked == [(batch, f"neigh del fd00:a::3 dev {X.bridge}\n")]
    assert tool.calls == [LIST]


def test_what_an_address_answered_goes_at_once(tool: Tool, flows: Conntrack) -> None:
    tool.have(TO_CONTAINER)
    flows.follow(UDP, MOVED)
    # And once more: an answer that was under way may have begun a flow of its own.
    removal = "-D -f ipv6 -w 0 -p udp --reply-src fd00:a::2"
    assert tool.calls == [LIST, "-R -", removal, LIST]


def test_only_protocols_that_changed_are_listed(tool: Tool, flows: Conntrack) -> None:
    flows.follow(NOTHING, SCTP)
    assert tool.calls == ["-L -f ipv6 -w 0 -p sctp"]
    flows.follow(UDP, SCTP)
    assert tool.calls == [f"-L -f ipv6 -w 0 -p {protocol}" for protocol in ("udp", "sctp")]


def test_a_proxy_that_does_not_stop_talking_is_left_after_a_while(
    tool: Tool, flows: Conntrack
) -> None:
    tool.have(TO_HOST, removal=f"echo '{TO_HOST}' >entries")
    flows.follow(None, UDP)
    assert [each.split()[0] for each in tool.calls] == ["-L", "-R", "-D"] * conntrack.LOOKS


GONE = "echo 'conntrack v1.4.7: 0 flow entries have been deleted.' >&2; exit 1"
ENDED = 'echo "conntrack v1.4.7: Operation failed: such conntrack doesn\'t exist" >&2; exit 1'


def test_a_flow_that_ended_by_itself_is_no_trouble(
    tool: Tool, flows: Conntrack, caplog: pytest.LogCaptureFixture
) -> None:
    tool.have(TO_HOST, removal=GONE)
    assert flows.follow(None, UDP)
    assert len(tool.calls) == 4
    # One that ends while the tool is about to delete it makes it leave the others: once more.
    tool.have(TO_HOST, removal=f"[ -e tried ] || {{ : >tried; {ENDED}; }}; {GONE}")
    assert flows.follow(None, UDP)
    assert [each.split()[0] for each in tool.calls] == ["-L", "-R", "-D", "-R", "-D", "-L"]
    assert [each for each in caplog.records if each.levelname == "WARNING"] == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'conntrack v1.4.7: Operation failed: no permission' >&2; exit 1", "no permission"),
        ("exit 3", "exit status 3, no message"),
        (ENDED, "such conntrack doesn't exist"),
        ("kill -9 $$", "exit status -9"),
        ("exec sleep 5", "did not end within 0.3 s"),
    ],
)
def test_a_failure_is_a_warning_in_the_tools_words_and_no_more(
    tool: Tool,
    flows: Conntrack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    script: str,
    words: str,
) -> None:
    monkeypatch.setattr(conntrack, "PATIENCE", 0.3)
    tool.have(TO_HOST, removal=script)
    assert not flows.follow(None, UDP)
    (record,) = [each for each in caplog.records if each.levelname == "WARNING"]
    assert words in record.getMessage()


def many(tool: Tool) -> None:
    """A list of 300 that are wrong, no two in the same way."""
    wrong = [TO_CONTAINER.replace("fd00:a::2", f"fd00:a::1:{n:x}") for n in range(300)]
    ports = [line.replace("40000", str(40000 + n)) for n, line in enumerate(wrong)]
    tool.have("\n".join([*ports, TO_CONTAINER]))


def test_many_removals_are_few_processes(tool: Tool, flows: Conntrack) -> None:
    many(tool)
    assert flows.follow(None, UDP)
    assert [each for each in tool.calls if not each.startswith("-D")] == [
        LIST,
        *["-R -"] * 10,
        LIST,
    ]


def test_rules_that_are_to_be_written_do_not_wait_for_many_removals(
    tool: Tool,
    flows: Conntrack,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """But each look gets on: flows follow in the end, however much happens meanwhile."""
    monkeypatch.setattr(conntrack, "HOLD", 0)
    many(tool)
    assert not flows.follow(None, UDP, False, lambda: True)
    calls = tool.calls
    assert calls[:2] == [LIST, "-R -"]
    assert len(calls) == 2 + 32
    assert flows.follow(None, UDP, False, lambda: True)
    assert [each for each in caplog.records if each.levelname == "WARNING"] == []


def test_what_takes_no_time_is_done_though_rules_are_to_be_written(
    tool: Tool, flows: Conntrack
) -> None:
    tool.have(TO_HOST)
    assert flows.follow(None, UDP, False, lambda: True)
    assert len(tool.calls) == 4


def test_a_tool_that_cannot_be_run_is_a_warning(
    tool: Tool, flows: Conntrack, caplog: pytest.LogCaptureFixture
) -> None:
    tool.path.write_text("#!/nonexistent\n")
    assert not flows.follow(None, UDP)
    assert "cannot be run: No such file or directory" in caplog.text


def test_a_host_without_the_tool_is_told_once_which_package_has_it(
    tool: Tool, flows: Conntrack, caplog: pytest.LogCaptureFixture
) -> None:
    tool.path.unlink()
    flows.follow(None, UDP)
    flows.follow(UDP, MOVED)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "install the package conntrack (on Arch: conntrack-tools)" in record.getMessage()


# When the loop asks for it.


class Loop:
    """A loop over a firewall in memory; `followed` has the UDP ports before and after, each time
    that flows were to follow."""

    def __init__(self) -> None:
        self.followed: list[tuple[list[int] | None, list[int]]] = []
        self.exposed: list[bool] = []
        self.firewall = FakeFirewall()
        self.facts = FakeFacts()
        self.passes = 0
        self.done = True
        """What is answered when flows were to follow."""
        self.meanwhile: Callable[[Callable[[], bool]], None] = lambda _: None
        self.loop = Reconciler(
            firewall=self.firewall,
            facts=self.facts,
            policy=Policy(),
            complete=lambda snapshot, _: snapshot,
            publish=lambda *_: self._passed(),
            follow_flows=self._follow,
        )

    def _passed(self) -> None:
        self.passes += 1

    def _follow(
        self, old: Desired | None, new: Desired, exposed: bool, waiting: Callable[[], bool]
    ) -> bool:
        # What is to be followed is in force already.
        assert all(f"--dport {port} " in self.firewall.dump() for port in ports(new))
        self.followed.append((None if old is None else ports(old), ports(new)))
        self.exposed.append(exposed)
        self.meanwhile(waiting)
        return self.done

    async def passed(self, *facts: Network | Container, how: Callable[[], None]) -> None:
        self.facts.have(*facts)
        before = self.passes
        how()
        await until(lambda: self.passes > before)


def ports(wish: Desired) -> list[int]:
    return [each.host_port for each in wish.mappings]


def test_the_loop_lets_flows_follow_once_the_rules_are_in_force() -> None:
    async def scenario() -> None:
        bench = Loop()
        trigger, verify = bench.loop.trigger, bench.loop.verify
        udp = container(on=[X], ports=["5353:53/udp"])
        other = container(name="other", on=[X], ports=["80:80"])
        async with background(bench.loop.run()):
            await bench.passed(X, how=trigger)
            # What began before the first pass may have outlived its mapping.
            assert bench.followed == [(None, [])]
            bench.followed.clear()
            await bench.passed(X, other, how=trigger)
            assert bench.followed == [([], [80])]
            bench.followed.clear()
            await bench.passed(X, other, how=trigger)
            assert bench.followed == []
            await bench.passed(X, udp, how=trigger)
            await bench.passed(X, udp, how=trigger)
            await bench.passed(X, udp, how=verify)
            assert bench.followed == [([80], [5353])]
            # What began while our rules were out began without them.
            bench.firewall.flush()
            await bench.passed(X, udp, how=verify)
            assert bench.followed[1:] == [([5353], [5353]), (None, [5353])]
            del bench.followed[1]
            # A pass that failed is not forgotten by the one that mends it.
            bench.firewall.fail_next = "no room"
            await bench.passed(X, how=trigger)
            assert bench.followed[2:] == []
            await bench.passed(X, how=verify)
            assert bench.followed[2:] == [([5353], [])]
            # After everything was taken out nobody knows what began meanwhile.
            await bench.loop.remove()
            await bench.passed(X, udp, how=trigger)
            assert bench.followed[3:] == [(None, [5353])]

    asyncio.run(scenario())


def test_the_first_pass_lets_all_flows_follow() -> None:
    async def scenario() -> None:
        bench = Loop()
        udp = container(on=[X], ports=["5353:53/udp"])
        async with background(bench.loop.run()):
            await bench.passed(X, udp, how=bench.loop.trigger)
        assert bench.followed == [(None, [5353])]

    asyncio.run(scenario())


def test_flows_that_could_not_follow_are_tried_again_and_so_are_all_when_an_address_moved() -> None:
    async def scenario() -> None:
        bench = Loop()
        udp = container(on=[X], ports=["5353:53/udp"])
        async with background(bench.loop.run()):
            await bench.passed(X, how=bench.loop.trigger)
            bench.followed.clear()
            bench.done = False
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert bench.followed == [([], [5353])]
            bench.followed.clear()
            bench.done = True
            # Nothing differs but that: from what they followed last, and from whatever else.
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert bench.followed == [([], [5353]), (None, [5353])]
            bench.followed.clear()
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert bench.followed == []
            await bench.passed(X, udp, how=bench.loop.moved)
            assert bench.followed == [(None, [5353])]
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert len(bench.followed) == 1
            bench.followed.clear()
            # What holds one, or makes it fail, does the same to the next: it is for the next pass.
            bench.done = False
            bench.firewall.flush()
            await bench.passed(X, udp, how=bench.loop.verify)
            assert bench.followed == [([5353], [5353])]

    asyncio.run(scenario())


def test_networks_were_open_where_their_rules_had_not_stood() -> None:
    async def scenario() -> None:
        bench = Loop()
        udp = container(on=[X], ports=["5353:53/udp"])
        async with background(bench.loop.run()):
            await bench.passed(X, udp, how=bench.loop.trigger)
            assert bench.exposed == [True]  # nobody had been here before
            await bench.passed(X, how=bench.loop.trigger)
            assert bench.exposed == [True, False]
            bench.firewall.flush()
            await bench.passed(X, how=bench.loop.verify)
            assert bench.exposed[2:] == [True, False]
        again = Loop()
        again.firewall = again.loop._kernel.firewall = bench.firewall
        async with background(again.loop.run()):
            await again.passed(X, how=again.loop.trigger)
            assert again.exposed == [False]

    asyncio.run(scenario())


def test_flows_that_follow_are_told_that_the_next_pass_waits() -> None:
    async def check() -> None:
        there = Loop()
        on_loop = asyncio.get_running_loop()
        seen: list[bool] = []

        def meanwhile(waiting: Callable[[], bool]) -> None:
            seen.append(waiting())
            there.facts.have(X)
            on_loop.call_soon_threadsafe(there.loop.trigger)
            seen.append(reached(waiting, True, timeout=10))
            there.meanwhile, there.done = lambda _: None, True

        async with background(there.loop.run()):
            await there.passed(X, how=there.loop.trigger)
            there.meanwhile, there.done = meanwhile, False
            made = container(on=[endpoint(on=X, address="fd00:a::2")], ports=["5353:53/udp"])
            await there.passed(X, made, how=there.loop.trigger)
            await until(lambda: "--dport 5353 " not in there.firewall.dump())
            assert seen == [False, True]
            assert there.followed[-1][1] == []

    asyncio.run(check())
