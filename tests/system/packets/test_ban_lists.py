"""Beside ban lists and rules of other programs in FORWARD: Q2 and F7."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.harness import Failure, Wanted, serve, tcp, until
from tests.harness.sandbox import CLIENT, HOST
from tests.system.packets.asking import SHORT, opened
from tests.system.packets.small import Small, small

BANS = {
    # mailcow's netfilter, crowdsec and fail2ban: a chain of their own, or single rules.
    "a chain": [":MAILCOW - [0:0]", "-I FORWARD 1 -j MAILCOW", f"-A MAILCOW -s {CLIENT} -j DROP"],
    "a chain named like the engine's": [
        ":DOCKER-BLOCKLIST - [0:0]",
        "-I FORWARD 1 -j DOCKER-BLOCKLIST",
        f"-A DOCKER-BLOCKLIST -s {CLIENT} -j DROP",
    ],
    "a rule": [f"-I FORWARD 1 -s {CLIENT} -j REJECT"],
    "behind a rule that logs": ["-I FORWARD 1 -j LOG", f"-I FORWARD 2 -s {CLIENT} -j DROP"],
}
FIRST = [
    *(pytest.param("nft", ban, id=f"nft-{ban}") for ban in BANS),
    pytest.param("legacy", "a rule", id="legacy-a rule"),
    *(
        pytest.param("legacy", ban, id=f"legacy-{ban}", marks=pytest.mark.slow)
        for ban in BANS
        if ban != "a rule"
    ),
]
"""The order of rules is decided without the variant, so CI has one ban of legacy."""


@pytest.fixture(params=["nft", "legacy"])
def lab(request: pytest.FixtureRequest, tools: None) -> Iterator[Small]:  # noqa: ARG001
    with small(Wanted(None, request.param, proxy=False)) as lab:
        yield lab


def load(lab: Small, *lines: str) -> None:
    text = "\n".join(["*filter", *lines, "COMMIT", ""])
    tool = f"ip6tables-{lab.sandbox.variant}-restore"
    lab.sandbox.host.run("sh", "-c", f"{tool} --noflush --wait <<'EOF'\n{text}EOF")


def forward(lab: Small) -> list[str]:
    lines = lab.sandbox.rules().splitlines()
    return [line for line in lines if line.startswith("-A FORWARD")]


SETS = {
    "a rule": ["insert rule ip6 filter FORWARD ip6 saddr @bans drop"],
    "an anonymous set": [f"insert rule ip6 filter FORWARD ip6 saddr {{ {CLIENT}, fd77::1 }} drop"],
    "a chain": [
        "add chain ip6 filter BAN",
        "add rule ip6 filter BAN ip6 saddr @bans drop",
        "insert rule ip6 filter FORWARD jump BAN",
    ],
    "a jump": [
        "add chain ip6 filter BAN",
        "add rule ip6 filter BAN drop",
        "insert rule ip6 filter FORWARD ip6 saddr @bans jump BAN",
    ],
}


@pytest.mark.parametrize("ban", SETS)
@pytest.mark.parametrize(
    "when", ["before the start", pytest.param("while it runs", marks=pytest.mark.slow)]
)
def test_q2_ban_by_a_set_of_nft_applies_to_containers(
    tools: None,  # noqa: ARG001
    ban: str,
    when: str,
) -> None:
    """ip6tables shows such a rule without its condition, as one that drops every packet."""
    with small(Wanted(None, "nft", proxy=False)) as lab:
        load(lab, "-P FORWARD ACCEPT")
        if when == "while it runs":
            lab.daemon.start()
            opened(lab.client, 8080)
        elements = f"{{ type ipv6_addr; elements = {{ {CLIENT} }}; }}"
        for command in (f"add set ip6 filter bans {elements}", *SETS[ban]):
            lab.sandbox.host.run("nft", command)
        if when == "before the start":
            lab.daemon.start()
        time.sleep(2.5)
        assert isinstance(tcp(lab.client, HOST, 8080, timeout=SHORT), Failure)
        lab.sandbox.host.run("nft", "flush chain ip6 filter FORWARD")
        assert until(lambda: "-j IPV6NAT-FORWARD" in str(forward(lab)), True)
        opened(lab.client, 8080)


@pytest.mark.parametrize(("lab", "ban"), FIRST, indirect=["lab"])
@pytest.mark.parametrize("when", ["before the start", "while it runs"])
def test_q2_ban_first_in_forward_applies_to_containers(lab: Small, ban: str, when: str) -> None:
    """No exchange of positions, and no edit that is repaired."""
    if when == "before the start":
        load(lab, *BANS[ban])
        lab.daemon.start()
        time.sleep(SHORT)
    else:
        lab.daemon.start()
        opened(lab.client, 8080)
        load(lab, *BANS[ban])
        time.sleep(2.5)
    failure = tcp(lab.client, HOST, 8080, timeout=SHORT)
    assert failure in (Failure.TIMEOUT, Failure.REFUSED, Failure.UNREACHABLE)
    before = forward(lab)
    assert "DOCKER-USER" not in before[0]
    for _ in range(3):
        lab.daemon.stop()
        lab.daemon.start()
    assert forward(lab) == before
    assert isinstance(tcp(lab.client, HOST, 8080, timeout=SHORT), Failure)
    assert "restoring them" not in lab.daemon.log
    assert "stale IPv6 rules" not in lab.daemon.log


def test_rule_that_rejects_everything_does_not_stay_before_ours(lab: Small) -> None:
    """F7, with a ban list before it, which stays."""
    lab.daemon.start()
    opened(lab.client, 8080)
    load(lab, "-I FORWARD 1 -s 2001:db8:1::77 -j DROP", "-I FORWARD 2 -j REJECT")
    assert until(lambda: "-j DOCKER-USER" in forward(lab)[1], True)
    opened(lab.client, 8080)
    assert "2001:db8:1::77" in forward(lab)[0]


OPEN = {
    "goto": [":BAN - [0:0]", "-A BAN -s 2001:db8:bad::/48 -j DROP", "-I FORWARD 1 -i ext0 -g BAN"],
    "return": ["-I FORWARD 1 -i ext0 -j RETURN"],
}


@pytest.mark.parametrize("rules", OPEN)
def test_rule_after_which_the_policy_decides_does_not_stay_first(lab: Small, rules: str) -> None:
    """The policy of FORWARD is ACCEPT here: such a rule is no ban list."""
    assert lab.x1.address
    load(lab, *OPEN[rules])
    lab.daemon.start()
    opened(lab.client, 8080)
    assert forward(lab)[0].endswith("-j DOCKER-USER")
    with serve(lab.x1.ns, "unpublished", tcp=[81]):
        assert tcp(lab.sandbox.rogue, lab.x1.address, 81, timeout=SHORT) is Failure.TIMEOUT


def test_native_goto_does_not_stay_first(tools: None) -> None:  # noqa: ARG001
    with small(Wanted(None, "nft", proxy=False)) as lab:
        assert lab.x1.address
        ban = "-s 2001:db8:bad::/48 -j DROP"
        load(lab, ":BAN - [0:0]", f"-A BAN {ban}", f"-A FORWARD {ban}")
        rule = 'insert rule ip6 filter FORWARD iifname "ext0" ip6 saddr { 2001:db8::/32 } goto BAN'
        lab.sandbox.host.run("nft", rule)
        lab.daemon.start()
        opened(lab.client, 8080)
        with serve(lab.x1.ns, "unpublished", tcp=[81]):
            assert tcp(lab.sandbox.rogue, lab.x1.address, 81, timeout=SHORT) is Failure.TIMEOUT
