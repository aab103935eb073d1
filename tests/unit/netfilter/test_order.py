"""Whose rule comes first in FORWARD: Q2 and F7."""

from __future__ import annotations

import pytest

from ipv6natd.netfilter.order import (
    Chains,
    Effect,
    bans_sources,
    displacing_rule,
    effect,
    place_in_forward,
)

DOCKER_USER = "-j DOCKER-USER"
OURS = "-m comment --comment ipv6natd -j IPV6NAT-FORWARD"
BAN = "-s 2001:db8:1::2/128 -j DROP"
REJECT = "-j REJECT --reject-with icmp6-port-unreachable"
CHAINS = {
    "IPV6NAT-FORWARD": ["-i br-a -j ACCEPT"],
    "DOCKER-USER": [],
    "EMPTY": [],
    "MAILCOW": [BAN, "-s 2001:db8:1::3/128 -j REJECT --reject-with icmp6-port-unreachable"],
    "ALLOW-LIST": ["-s 2001:db8:1::4/128 -j RETURN", "-j DROP"],
    "OUTER": ["-i ext0 -j MAILCOW"],
    "CLOSED": ["-j LOG", "-j DROP"],
    "MIXED": ["-p tcp -j ACCEPT", BAN],
    "DEAD": ["-j RETURN", "-j DROP"],
    "LOOP": ["-j LOOP"],
    "NESTED": ["-i ext0 -g MAILCOW", BAN],
    "ALL-NESTED": ["-g MAILCOW", "-j ACCEPT"],
    "WHITELIST": ["-s 2001:db8:1::4/128 -j ACCEPT", BAN],
    "DOCKER-USER-BAN": [BAN],
    "DOCKER-BLOCKLIST": [BAN],
    "DOCKER-ISOLATION-STAGE-1": ["-i br-x ! -o br-x -j DROP"],
}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (BAN, Effect(drops=True)),
        ('-m comment --comment "a ban, not -j ACCEPT" -j DROP', Effect(drops=True, ends=True)),
        ("-i vmbr0 -j ACCEPT", Effect(accepts=True)),
        ("-j ACCEPT", Effect(accepts=True, ends=True)),
        (REJECT, Effect(drops=True, ends=True)),
        (f"-i ext0 {REJECT}", Effect(drops=True)),
        ('-j LOG --log-prefix "x -j DROP"', Effect()),
        ("-j MARK --set-xmark 0x1/0xffffffff", Effect()),
        ("-m conntrack --ctstate NEW", Effect()),
        ("-j EMPTY", Effect()),
        ("-j MAILCOW", Effect(drops=True)),
        ("-j OUTER", Effect(drops=True)),
        ("-j ALLOW-LIST", Effect(drops=True)),
        ("-j CLOSED", Effect(drops=True, ends=True)),
        ("-i ext0 -j CLOSED", Effect(drops=True)),
        ("-g EMPTY", Effect(ends=True, returns=True)),
        ("-i ext0 -g MAILCOW", Effect(drops=True, returns=True)),
        ("-i ext0 -g CLOSED", Effect(drops=True)),
        ("-i ext0 -j RETURN", Effect(returns=True)),
        # The goto returns to the chain that called this one.
        ("-j NESTED", Effect(drops=True)),
        ("-j ALL-NESTED", Effect(drops=True)),
        ("-j MIXED", Effect(accepts=True, drops=True)),
        ("-j DEAD", Effect()),
        ("-j LOOP", Effect()),
        ("-j NFQUEUE --queue-num 0", Effect(accepts=True, drops=True)),
        ("-m native", Effect(accepts=True, drops=True)),
        ("-m native -j DROP", Effect(drops=True)),
    ],
)
def test_effect_of_a_rule(rule: str, expected: Effect) -> None:
    assert effect(rule, CHAINS) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (BAN, True),
        ("-m set --match-set bad src -j DROP", True),
        ("-i ext0 -j OUTER", True),
        ("-j WHITELIST", True),
        ("-g MAILCOW", True),
        ("-i ext0 -j DROP", False),
        ("-m set --match-set bad dst -j DROP", False),
        ('-m comment --comment "not -s here" -j DROP', False),
        ("-j LOOP", False),
        ("-j ACCEPT", False),
        ("-m native", False),
    ],
)
def test_rule_that_bans_sources(rule: str, expected: bool) -> None:
    assert bans_sources(rule, CHAINS) is expected


def test_effect_takes_linear_time() -> None:
    depth = 40
    chains = {f"C{i}": [f"-j C{i + 1}"] * 2 for i in range(depth)} | {f"C{depth}": [BAN]}
    assert effect("-j C0", chains) == Effect(drops=True)
    assert not bans_sources("-j C0", chains | {f"C{depth}": ["-i ext0 -j DROP"]})


@pytest.mark.parametrize(
    ("rules", "place", "displacing"),
    [
        ([], 0, ""),
        # Without our jump: behind what only drops, before all else.
        ([BAN], 1, ""),
        (["-j MAILCOW", "-j LOG", "-i vmbr0 -j ACCEPT"], 2, ""),
        (["-i vmbr0 -j ACCEPT", BAN], 0, ""),
        ([REJECT], 0, ""),
        ([BAN, "-i docker0 ! -o docker0 -j ACCEPT"], 1, ""),
        ([BAN, "-j DOCKER-FORWARD"], 1, ""),
        # The policy decides about packets that return from FORWARD.
        ([BAN, "-i ext0 -j RETURN"], 1, ""),
        (["-i ext0 -g MAILCOW"], 0, ""),
        (["-i ext0 -g CLOSED"], 1, ""),
        (["-m native -g MAILCOW"], 0, ""),
        (["-j NESTED"], 1, ""),
        (["-j DOCKER-USER-BAN"], 1, ""),
        # A user's chain can have such a name; of the engine's own chains nothing stays first.
        (["-j DOCKER-BLOCKLIST"], 1, ""),
        (["-i ext0 -g DOCKER-BLOCKLIST"], 0, ""),
        (["-j DOCKER-ISOLATION-STAGE-1"], 0, ""),
        ([BAN, DOCKER_USER], 1, ""),
        # With our jump: nothing moves, unless a rule displaces it.
        ([DOCKER_USER, OURS, BAN], 0, ""),
        (["-j DOCKER-USER-BAN", DOCKER_USER, OURS], 1, ""),
        (["-j DOCKER-BLOCKLIST", DOCKER_USER, OURS], 1, ""),
        (
            ["-j DOCKER-ISOLATION-STAGE-1", DOCKER_USER, OURS],
            0,
            "-j DOCKER-ISOLATION-STAGE-1",
        ),
        ([BAN, DOCKER_USER, OURS], 1, ""),
        (["-i vmbr0 -j ACCEPT", DOCKER_USER, OURS], 1, ""),
        (["-i vmbr0 -j ACCEPT", REJECT, DOCKER_USER, OURS], 0, REJECT),
        ([BAN, REJECT, DOCKER_USER, OURS], 1, REJECT),
        ([DOCKER_USER, "-j CLOSED", OURS], 0, "-j CLOSED"),
        (["-j DOCKER-FORWARD", DOCKER_USER, OURS], 0, "-j DOCKER-FORWARD"),
        (["-i br-x ! -o br-x -j ACCEPT", DOCKER_USER, OURS], 0, "-i br-x ! -o br-x -j ACCEPT"),
        (["-j ACCEPT", DOCKER_USER, OURS], 0, "-j ACCEPT"),
    ],
)
def test_place_of_our_jumps(rules: list[str], place: int, displacing: str) -> None:
    chains: Chains = {**CHAINS, "FORWARD": rules}
    assert place_in_forward(chains) == place
    assert displacing_rule(chains) == displacing
