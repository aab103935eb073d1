"""What is remembered changes no answer, and saves asking again."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from ipv6natd.model import Container, Policy
from ipv6natd.policy.cache import IdentityCache
from ipv6natd.policy.desired import DesiredCache, desired
from ipv6natd.policy.ruleset import RulesetCache, ruleset
from tests.harness.build import container, endpoint, network, snapshot

NETWORKS = [
    network(name="x", subnet="fd00:a::/64"),
    network(name="y", subnet="fd00:b::/64"),
    network(name="in", subnet="fd00:c::/64", internal=True),
]


def anything(random: Random, name: str) -> Container:
    """A container with ports that others may want too, and runs that come together and fall
    apart."""
    first = random.randrange(8000, 8040)
    ports = random.choice(
        [
            f"{first}:80",
            f"{first}-{first + 5}:{first}-{first + 5}/udp",
            f"{first}-{first + 2}:9000-9002",
            f"[2001:db8::1]:{first}:80",
            f"[::1]:{first}:80",
            f"[fe80::1]:{first}:80",
        ]
    )
    on = random.sample(NETWORKS, random.randrange(1, 3))
    endpoints = [
        endpoint(on=each, address=str(each.subnets[0][random.randrange(2, 99)])) for each in on
    ]
    return container(name=name, on=endpoints, ports=[ports])


def test_with_and_without_memory_all_is_the_same() -> None:
    random = Random(6)
    wishes, rules = DesiredCache(), RulesetCache()
    containers: dict[str, Container] = {}
    networks = list(NETWORKS)
    for turn in range(300):
        name = f"c{random.randrange(30)}"
        if random.random() < 0.3:
            containers.pop(name, None)
        else:
            containers[name] = anything(random, name)
        if turn % 50 == 49:
            networks[0] = replace(networks[0], icc=not networks[0].icc)
        facts = snapshot(*networks, *containers.values(), userland_proxy=turn % 40 < 20)
        policy = Policy(allow_direct_routing=turn % 90 > 80)
        want = desired(facts, policy, wishes)
        assert want == desired(facts, policy)
        assert ruleset(want, rules) == ruleset(want)


def test_what_stays_is_asked_about_once_and_what_left_is_forgotten() -> None:
    asked: list[str] = []
    cached: IdentityCache[str, int] = IdentityCache()

    def answer(thing: str) -> int:
        asked.append(thing)
        return len(asked)

    one, other = "one", "other"
    assert cached.map([one, other], answer) == [1, 2]
    assert cached.map([other, one], answer) == [2, 1]
    assert cached.map([one], answer, key="new") == [3]
    assert cached.map([one], answer, key="new") == [3]
    assert cached.map([other], answer, key="new") == [4]
    assert cached.map([one], answer, key="new") == [5]


def test_a_change_derives_anew_only_what_changed() -> None:
    """Object by object, so that those behind it may remember too."""
    wishes, rules = DesiredCache(), RulesetCache()
    many = [
        container(name=f"c{i}", on=NETWORKS[:1], ports=[f"{i}:80"]) for i in range(2000, 3000, 2)
    ]
    before = desired(snapshot(*NETWORKS, *many), Policy(), wishes)
    nat = ruleset(before, rules).nat
    more = container(name="more", on=NETWORKS[:1], ports=["2901:80"])
    after = desired(snapshot(*NETWORKS, *many, more), Policy(), wishes)
    assert len({id(each) for each in after.mappings} - {id(each) for each in before.mappings}) == 1
    old = {id(rule) for chain in nat.chains for rule in chain.rules if rule.protocol}
    new = [rule for chain in ruleset(after, rules).nat.chains for rule in chain.rules]
    assert [rule.ports for rule in new if rule.protocol and id(rule) not in old] == [(2901, 2901)]
