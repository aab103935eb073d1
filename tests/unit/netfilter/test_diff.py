"""The changes that diff_chains() and rewrite_tables() plan, and the detection of foreign edits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.model import Container, Desired, Network, Policy
from ipv6natd.netfilter.diff import (
    DockerUserSteps,
    ObservedJump,
    ObservedTable,
    TableChange,
    diff_chains,
    docker_user_steps,
    has_drifted,
    jumps_differ,
    matches,
    rewrite_tables,
)
from ipv6natd.netfilter.render import changed_rules, format_ruleset
from ipv6natd.netfilter.rules import EMPTY, Ruleset, Table
from ipv6natd.policy.desired import desired, during_change
from ipv6natd.policy.ruleset import ruleset
from ipv6natd.sync.applier import remove_all
from tests.harness.build import container, endpoint, network, snapshot
from tests.harness.fake_firewall import FakeFirewall

X = network(name="x", subnet="fd00:a::/64", bridge="br-a")
Y = network(name="y", subnet="fd00:b::/64", bridge="br-b")
NOTHING = Desired()
OURS = "-m comment --comment ipv6natd -j"
FOREIGN = """\
*raw
-A PREROUTING -s 2001:db8::bad/128 -j DROP
COMMIT
*filter
:FORWARD ACCEPT [0:0]
:DOCKER - [0:0]
:IPV6-NAT - [0:0]
-A INPUT -i lo -j ACCEPT
-A INPUT -m comment --comment "jumps to IPV6NAT-INPUT" -j DROP
-A FORWARD -i virbr0 -j ACCEPT
-A FORWARD -j DOCKER
-A DOCKER -j RETURN
-A IPV6-NAT -s fd00:a::/64 -j DROP
COMMIT
*nat
:OTHER - [0:0]
-A PREROUTING -j OTHER
-A POSTROUTING -s fd77::/64 -j MASQUERADE
-A OTHER -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 81
COMMIT
"""
DOCKER_USER = "*filter\n:DOCKER-USER - [0:0]\nCOMMIT\n"
USER_RULE = "*filter\n-A DOCKER-USER -s 2001:db8::bad -j DROP\nCOMMIT\n"


def wanted(*facts: Network | Container, userland_proxy: bool = True) -> Desired:
    return desired(snapshot(*facts, userland_proxy=userland_proxy), Policy())


def web(port: int = 8080, on: Network = X) -> Container:
    return container(name="web", on=[on], ports=[f"{port}:80"])


def steps(
    firewall: FakeFirewall, want: Desired, before: Desired | None = None
) -> list[TableChange]:
    """The changes that the reconciler would write between `before` and `want`."""
    rules = ruleset(want)
    if before is None:
        return rewrite_tables(firewall.read(), rules)
    old = ruleset(before)
    interim = ruleset(during_change(before, want))
    if jumps_differ(old, rules):
        return rewrite_tables(firewall.read(), rules, interim=interim)
    return diff_chains(old, rules, interim=interim)


def write(firewall: FakeFirewall, want: Desired, before: Desired | None = None) -> None:
    for step in steps(firewall, want, before):
        firewall.write(step)


def rules(firewall: FakeFirewall, chain: str, table: Table = Table.FILTER) -> list[str]:
    lines = firewall.dump().split(f"*{table}\n")[1].split("COMMIT")[0].splitlines()
    return [line.removeprefix(f"-A {chain} ") for line in lines if line.startswith(f"-A {chain} ")]


def foreign(firewall: FakeFirewall) -> list[str]:
    """The lines of the dump that are neither our chains and rules nor our jumps."""
    lines = firewall.dump().splitlines()
    return [
        line
        for line in lines
        if not line.startswith((":IPV6NAT-", "-A IPV6NAT-", ":DOCKER-USER"))
        and not line.endswith(("-j DOCKER-USER", "-j IPV6NAT-FORWARD"))
        and f"{OURS} IPV6NAT-" not in line
    ]


@pytest.fixture
def firewall() -> FakeFirewall:
    found = FakeFirewall()
    found.load(FOREIGN)
    return found


# The written changes.


def test_first_write_makes_tables_match(firewall: FakeFirewall) -> None:
    want = wanted(X, web())
    write(firewall, want)
    for table in Table:
        expected = ruleset(want).table(table)
        assert matches(expected, firewall.read()[table])
    assert rules(firewall, "FORWARD")[:2] == [f"{OURS} DOCKER-USER", f"{OURS} IPV6NAT-FORWARD"]
    assert rules(firewall, "PREROUTING", Table.NAT)[-1].endswith("-j IPV6NAT-PRE")


@pytest.mark.parametrize("connects", [True, False])
def test_other_source_comes_in_only_while_filter_drops_its_new_packets(
    firewall: FakeFirewall, connects: bool
) -> None:
    """`docker network connect` and `disconnect`: after each transaction."""
    alone = wanted(X, Y, container(name="web", on=[endpoint(on=Y)]))
    on_both = wanted(X, Y, container(name="web", on=[endpoint(on=X), endpoint(on=Y, priority=1)]))
    old, new = (alone, on_both) if connects else (on_both, alone)
    write(firewall, old)
    let_in = False
    for step in steps(firewall, new, before=old):
        firewall.write(step)
        dump = firewall.dump()
        let_in = "-A IPV6NAT-FROM-br-a -s fd00:a::2/128 -i br-b -j RETURN" in dump
        assert "-A IPV6NAT-NEW-br-b -s fd00:a::2/128 -j DROP" in dump or not let_in
    assert let_in is connects


def test_unchanged_ruleset_writes_nothing(firewall: FakeFirewall) -> None:
    want = wanted(X, web())
    write(firewall, want)
    assert steps(firewall, want, before=want) == []


def test_changed_port_writes_only_its_chain(firewall: FakeFirewall) -> None:
    before, after = wanted(X, web()), wanted(X, web(7070))
    (step,) = steps(firewall, after, before)
    assert (step.table, list(step.chains)) == (Table.NAT, ["IPV6NAT-DNAT"])
    assert (step.remove, step.create, step.insert, step.delete) == ((), (), (), ())


def test_foreign_chains_and_rules_stay_from_first_write_to_removal(firewall: FakeFirewall) -> None:
    """T3, I15, C1: byte for byte."""
    start, dump = foreign(firewall), firewall.dump()
    before: Desired | None = None
    for want in (
        wanted(X, web()),
        wanted(X, Y, web(), userland_proxy=False),
        wanted(Y, web(on=Y)),
        wanted(),
    ):
        write(firewall, want, before)
        assert foreign(firewall) == start
        before = want
    remove_all(firewall)
    assert firewall.dump() == dump


def test_remove_all_returns_the_count_and_does_nothing_the_second_time(
    firewall: FakeFirewall,
) -> None:
    write(firewall, wanted(X, web()))
    assert remove_all(firewall) == 10 + 6
    dump, writes = firewall.dump(), firewall.writes
    assert remove_all(firewall) == 0
    assert (firewall.dump(), firewall.writes) == (dump, writes)


def test_remove_all_creates_no_tables() -> None:
    firewall = FakeFirewall()
    assert remove_all(firewall) == 0
    assert firewall.dump() == ""


def test_unknown_chains_with_our_prefix_are_removed_with_their_jumps(
    firewall: FakeFirewall,
) -> None:
    """T4: rules of an earlier version or a killed process."""
    firewall.load(
        "*filter\n:IPV6NAT-OLD - [0:0]\n:IPV6NAT-OLDER - [0:0]\n-A IPV6NAT-OLD -j IPV6NAT-OLDER\n"
        "-A FORWARD -i eth0 -j IPV6NAT-OLD\n-A OUTPUT -g IPV6NAT-OLDER\nCOMMIT\n"
    )
    write(firewall, wanted(X))
    assert set(firewall.read()[Table.FILTER].chains) == {
        "IPV6NAT-FORWARD",
        "IPV6NAT-CT",
        "IPV6NAT-INPUT",
        "IPV6NAT-HOST",
    }
    assert "IPV6NAT-OLD" not in firewall.dump()


def test_rules_of_a_killed_process_are_not_duplicated(firewall: FakeFirewall) -> None:
    """T4."""
    write(firewall, wanted(X, web()))
    dump = firewall.dump()
    write(firewall, wanted(X, web()))
    assert firewall.dump() == dump


def test_flushed_tables_are_written_again(firewall: FakeFirewall) -> None:
    """F1, F5."""
    want = wanted(X, web())
    write(firewall, want)
    firewall.flush()
    write(firewall, want)
    assert all(matches(ruleset(want).table(table), firewall.read()[table]) for table in Table)


# DOCKER-USER.


def test_missing_docker_user_is_created_and_removed_again(firewall: FakeFirewall) -> None:
    """F12."""
    dump = firewall.dump()
    write(firewall, wanted())
    assert firewall.read()[Table.FILTER].docker_user == 0
    remove_all(firewall)
    assert firewall.dump() == dump


def test_docker_user_with_rules_stays_with_its_jump(firewall: FakeFirewall) -> None:
    """F12, I13: rules of the administrator stay in force."""
    write(firewall, wanted(X))
    firewall.load(USER_RULE)
    write(firewall, wanted(X, Y), wanted(X))
    assert rules(firewall, "DOCKER-USER") == ["-s 2001:db8::bad -j DROP"]
    remove_all(firewall)
    assert rules(firewall, "DOCKER-USER") == ["-s 2001:db8::bad -j DROP"]
    assert rules(firewall, "FORWARD")[0] == f"{OURS} DOCKER-USER"
    assert "IPV6NAT-" not in "".join(rules(firewall, "FORWARD"))


def test_existing_docker_user_with_a_foreign_jump_stays(firewall: FakeFirewall) -> None:
    """F12."""
    firewall.load("*filter\n:DOCKER-USER - [0:0]\n-I FORWARD 1 -j DOCKER-USER\nCOMMIT\n")
    dump = firewall.dump()
    write(firewall, wanted(X))
    remove_all(firewall)
    assert firewall.dump() == dump


def test_foreign_jump_to_docker_user_replaces_ours(firewall: FakeFirewall) -> None:
    """F12, I13: with two jumps a rule of the administrator would apply twice."""
    write(firewall, wanted(X))
    firewall.load("*filter\n-I FORWARD 1 -j DOCKER-USER\nCOMMIT\n")
    write(firewall, wanted(X))
    assert rules(firewall, "FORWARD")[:2] == ["-j DOCKER-USER", f"{OURS} IPV6NAT-FORWARD"]
    assert sum("DOCKER-USER" in rule for rule in rules(firewall, "FORWARD")) == 1


def test_foreign_jump_to_docker_user_is_moved_to_the_head(firewall: FakeFirewall) -> None:
    """I12."""
    firewall.load(f"{DOCKER_USER}*filter\n-A FORWARD -j DOCKER-USER\nCOMMIT\n")
    write(firewall, wanted(X))
    assert rules(firewall, "FORWARD") == [
        "-j DOCKER-USER",
        f"{OURS} IPV6NAT-FORWARD",
        "-i virbr0 -j ACCEPT",
        "-j DOCKER",
    ]


def test_foreign_jump_with_a_match_stays_beside_ours(
    firewall: FakeFirewall,
) -> None:
    firewall.load(f"{DOCKER_USER}*filter\n-A FORWARD -i eth0 -j DOCKER-USER\nCOMMIT\n")
    write(firewall, wanted(X))
    assert rules(firewall, "FORWARD")[0] == f"{OURS} DOCKER-USER"
    assert rules(firewall, "FORWARD")[-1] == "-i eth0 -j DOCKER-USER"
    remove_all(firewall)
    assert rules(firewall, "FORWARD")[-1] == "-i eth0 -j DOCKER-USER"
    assert firewall.read()[Table.FILTER].docker_user == 0


def test_docker_user_created_between_read_and_write_fails_the_write(
    firewall: FakeFirewall,
) -> None:
    raw, planned, *_ = steps(firewall, wanted(X))
    firewall.write(raw)
    firewall.load(DOCKER_USER + USER_RULE)
    dump = firewall.dump()
    with pytest.raises(FirewallError, match="Chain already exists"):
        firewall.write(planned)
    assert firewall.dump() == dump


def test_docker_user_filled_between_read_and_removal_stays(firewall: FakeFirewall) -> None:
    write(firewall, wanted())
    planned = rewrite_tables(firewall.read(), EMPTY)
    firewall.load(USER_RULE)
    with pytest.raises(FirewallError, match="not empty"):
        firewall.write(planned[-1])
    assert rules(firewall, "DOCKER-USER") == ["-s 2001:db8::bad -j DROP"]


def jump_to_docker_user(*, ours: bool, base: str = "FORWARD", plain: bool = True) -> ObservedJump:
    return ObservedJump(
        base=base, position=0, target="DOCKER-USER", ours=ours, unconditional=plain, text=f"{ours}"
    )


OUR_JUMP, THEIR_JUMP = jump_to_docker_user(ours=True), jump_to_docker_user(ours=False)
MATCH_JUMP = jump_to_docker_user(ours=False, plain=False)
INPUT_JUMP = jump_to_docker_user(ours=False, base="INPUT")
CREATE = {"create": ("DOCKER-USER",)}
DELETE = {"delete": ("DOCKER-USER",)}


@pytest.mark.parametrize(
    ("wanted", "rules", "jumps", "expected"),
    [
        (True, None, [], CREATE),
        (True, 0, [], {}),
        (True, 1, [], {}),
        (True, 0, [OUR_JUMP], {"remove": (OUR_JUMP,)}),
        (True, 1, [OUR_JUMP], {"remove": (OUR_JUMP,)}),
        (True, 0, [THEIR_JUMP], {"remove": (THEIR_JUMP,), "foreign": True}),
        (True, 1, [THEIR_JUMP, OUR_JUMP], {"remove": (OUR_JUMP, THEIR_JUMP), "foreign": True}),
        (True, 1, [THEIR_JUMP, THEIR_JUMP], {"remove": (THEIR_JUMP,), "foreign": True}),
        (True, 0, [MATCH_JUMP, OUR_JUMP], {"remove": (OUR_JUMP,)}),
        (True, 0, [INPUT_JUMP], {}),
        (False, None, [], {}),
        (False, 0, [], {}),
        (False, 1, [], {}),
        (False, 0, [OUR_JUMP], {"remove": (OUR_JUMP,), **DELETE}),
        (False, 1, [OUR_JUMP], {}),
        (False, 0, [THEIR_JUMP], {}),
        (False, 1, [THEIR_JUMP], {}),
        (False, 0, [THEIR_JUMP, OUR_JUMP], {"remove": (OUR_JUMP,)}),
        (False, 1, [THEIR_JUMP, OUR_JUMP], {"remove": (OUR_JUMP,)}),
        (False, 0, [MATCH_JUMP, OUR_JUMP], {"remove": (OUR_JUMP,)}),
        (False, 1, [MATCH_JUMP, OUR_JUMP], {}),
    ],
)
def test_docker_user_steps(
    wanted: bool, rules: int | None, jumps: list[ObservedJump], expected: dict[str, object]
) -> None:
    """F12, I12, I13: by what is wanted, the number of rules in the chain, and the jumps to it."""
    observed = ObservedTable(docker_user=rules, jumps=tuple(jumps))
    expected_steps = DockerUserSteps(**expected)  # type: ignore[arg-type]
    assert docker_user_steps(observed, wanted=wanted) == expected_steps


# The order of the steps.


def order(changes: Iterable[TableChange]) -> list[str]:
    return [change.table.value for change in changes]


ALL = [Table.RAW.value, Table.FILTER.value, Table.NAT.value]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(None, wanted(X, web()), ALL, id="the first write"),
        pytest.param(wanted(), wanted(X, web()), ALL, id="a network and a port are added"),
        pytest.param(wanted(X), wanted(X, web()), ALL[1:], id="the first port is added"),
        pytest.param(wanted(X, web()), wanted(X, web(7070)), ["nat"], id="a port changes"),
        pytest.param(
            wanted(X, web()),
            wanted(),
            ["nat", "filter", "raw"],
            id="all networks are removed, with the jumps",
        ),
        pytest.param(
            wanted(X, Y, web()),
            wanted(X, web()),
            ["nat", "filter", "raw"],
            id="a network is removed",
        ),
        pytest.param(
            wanted(X, Y, web()),
            wanted(X, network(name="z", subnet="fd00:f::/64"), web()),
            ["raw", "filter", "nat", "filter", "raw"],
            id="one network for another",
        ),
        pytest.param(
            wanted(X, web()), wanted(replace(X, icc=False), web()), ["filter"], id="an option"
        ),
    ],
)
def test_tables_are_written_in_order_for_additions_and_in_reverse_for_removals(
    before: Desired | None, after: Desired, expected: list[str]
) -> None:
    """P6: the host never forwards a flow that the filter table does not guard, and accepts no
    established packet whose source the raw table has not checked."""
    firewall = FakeFirewall()
    if before is not None:
        write(firewall, before)
    changes = steps(firewall, after, before)
    assert order(changes) == expected
    for change in changes:
        firewall.write(change)
    assert all(matches(ruleset(after).table(table), firewall.read()[table]) for table in Table)


def test_interim_tables_guard_old_and_new_networks() -> None:
    before, after = wanted(X, Y, web()), wanted(X, network(name="z", subnet="fd00:f::/64"), web())
    firewall = FakeFirewall()
    write(firewall, before)
    first, second, _, fourth, last = steps(firewall, after, before)
    new = {"-s fd00:f::/64 ! -i br-z -j DROP", "! -i br-z -o br-z -j DROP"}
    guarded = {"-s fd00:b::/64 ! -i br-b -j DROP", "! -i br-b -o br-b -j DROP"} | new

    def written() -> set[str]:
        raw = rules(firewall, "IPV6NAT-SRC", Table.RAW)
        return {*raw, *rules(firewall, "IPV6NAT-FORWARD")}

    firewall.write(first)
    firewall.write(second)
    assert guarded <= written()
    firewall.write(fourth)
    firewall.write(last)
    assert guarded & written() == new


def test_removal_writes_nat_first_and_raw_last(firewall: FakeFirewall) -> None:
    write(firewall, wanted(X, web()))
    changes = rewrite_tables(firewall.read(), EMPTY)
    assert order(changes) == ["nat", "filter", "raw"]


def test_only_observed_tables_are_written(firewall: FakeFirewall) -> None:
    write(firewall, wanted(X))
    observed = {Table.FILTER: firewall.read()[Table.FILTER]}
    changes = rewrite_tables(observed, EMPTY)
    assert order(changes) == ["filter"]


# matches() and has_drifted().

EDITS = {
    "nothing": ("", True, False),
    "a foreign chain": ("*filter\n-A DOCKER -j RETURN\nCOMMIT", True, False),
    "a foreign rule behind our jumps": ("*filter\n-A FORWARD -j DROP\nCOMMIT", True, False),
    "a foreign rule in INPUT": ("*filter\n-I INPUT 1 -j DROP\nCOMMIT", True, False),
    "a foreign rule before our jumps": ("*filter\n-I FORWARD 1 -j DROP\nCOMMIT", False, True),
    "a foreign rule between our jumps": ("*filter\n-I FORWARD 2 -j DROP\nCOMMIT", False, True),
    "a rule in DOCKER-USER": (USER_RULE, True, False),
    "a second jump to DOCKER-USER": ("*filter\n-A FORWARD -j DOCKER-USER\nCOMMIT", True, True),
    "a rule of ours gone": (
        "*filter\n-D IPV6NAT-CT -s fd00:a::/64 -i br-a -j ACCEPT\nCOMMIT",
        False,
        True,
    ),
    "a rule in a chain of ours": ("*filter\n-I IPV6NAT-CT 1 -j DROP\nCOMMIT", False, True),
    "a chain of ours emptied": ("*filter\n:IPV6NAT-CT - [0:0]\nCOMMIT", False, True),
    "a chain with our prefix more": ("*filter\n:IPV6NAT-Q - [0:0]\nCOMMIT", False, True),
    "our jump gone": (f"*filter\n-D FORWARD {OURS} IPV6NAT-FORWARD\nCOMMIT", False, True),
    "our jump doubled": (f"*filter\n-A FORWARD {OURS} IPV6NAT-FORWARD\nCOMMIT", False, True),
    "our jump to DOCKER-USER gone": (
        f"*filter\n-D FORWARD {OURS} DOCKER-USER\nCOMMIT",
        False,
        True,
    ),
    "a rule of ours replaced by another": (
        "*filter\n-D IPV6NAT-CT -s fd00:a::/64 -i br-a -j ACCEPT\n"
        "-I IPV6NAT-CT 1 -i br-a -j DROP\nCOMMIT",
        True,
        True,
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_detected(firewall: FakeFirewall, edit: str) -> None:
    """F6, F7, F8: matches() compares chains, numbers of rules and jumps with the wanted ones,
    has_drifted() the kernel's text with the kernel's text."""
    text, still_matches, drifted = EDITS[edit]
    want = wanted(X, web(), userland_proxy=False)
    write(firewall, want)
    before = firewall.read()[Table.FILTER]
    firewall.load(f"{text}\n")
    now = firewall.read()[Table.FILTER]
    assert matches(ruleset(want).filter, now) is still_matches
    assert has_drifted(before, now) is drifted


def test_foreign_rule_at_the_head_of_nat_is_no_drift(firewall: FakeFirewall) -> None:
    """The order of jumps matters in FORWARD only."""
    want = wanted(X, web())
    write(firewall, want)
    before = firewall.read()[Table.NAT]
    firewall.load("*nat\n-I PREROUTING 1 -i eth9 -j ACCEPT\nCOMMIT\n")
    now = firewall.read()[Table.NAT]
    assert not has_drifted(before, now)
    assert matches(ruleset(want).nat, now)


def test_empty_table_matches_only_an_empty_ruleset() -> None:
    assert matches(EMPTY.nat, ObservedTable())
    assert not matches(ruleset(wanted(X)).nat, ObservedTable())


def test_jumps_differ_if_a_jump_is_added_or_removed() -> None:
    assert not jumps_differ(EMPTY, EMPTY)
    assert jumps_differ(ruleset(wanted()), ruleset(wanted(X)))
    assert not jumps_differ(ruleset(wanted(X)), ruleset(wanted(X, web())))
    assert not jumps_differ(ruleset(wanted(X, web())), ruleset(wanted(X, web(), web(7070))))


# Text.


def test_changed_rules_have_table_and_chain() -> None:
    old, new = ruleset(wanted(X, web())), ruleset(wanted(X, web(7070)))
    added, removed = changed_rules(old, new)
    dnat = "-t nat -A IPV6NAT-DNAT ! -i br-a -p tcp -m tcp --dport {} -j DNAT --to-destination"
    assert [rule.rpartition(" ")[0] for rule in added] == [dnat.format(7070)]
    assert [rule.rpartition(" ")[0] for rule in removed] == [dnat.format(8080)]
    assert changed_rules(new, new) == ([], [])
    assert changed_rules(EMPTY, Ruleset()) == ([], [])


def test_format_ruleset_loads_the_same_rules_as_the_changes() -> None:
    want = wanted(X, web(), userland_proxy=False)
    loaded, written = FakeFirewall(), FakeFirewall()
    loaded.load(DOCKER_USER + format_ruleset(ruleset(want)))
    write(written, want)
    assert {t: loaded.read()[t].chains for t in Table} == {
        t: written.read()[t].chains for t in Table
    }
    assert format_ruleset(EMPTY) == ""
