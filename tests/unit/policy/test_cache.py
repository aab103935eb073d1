"""The cache changes no result, and computes an unchanged item only once."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from ipv6natd.model import Container, Policy
from ipv6natd.policy.cache import IdentityCache
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from tests.harness.build import container, endpoint, network, snapshot

NETWORKS = [
    network(name="x", subnet="fd00:a::/64"),
    network(name="y", subnet="fd00:b::/64"),
    network(name="in", subnet="fd00:c::/64", internal=True),
]


def random_container(random: Random, name: str) -> Container:
    """A container whose ports may conflict with others, or extend their ranges."""
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
        endpoint(on=network, address=str(network.subnets[0][random.randrange(2, 99)]))
        for network in on
    ]
    return container(name=name, on=endpoints, ports=[ports])


def test_desired_and_ruleset_are_the_same_with_and_without_a_cache() -> None:
    random = Random(6)
    cache = IdentityCache()
    containers: dict[str, Container] = {}
    networks = list(NETWORKS)
    for turn in range(300):
        name = f"c{random.randrange(30)}"
        if random.random() < 0.3:
            containers.pop(name, None)
        else:
            containers[name] = random_container(random, name)
        if turn % 50 == 49:
            networks[0] = replace(networks[0], icc=not networks[0].icc)
        facts = snapshot(*networks, *containers.values(), userland_proxy=turn % 40 < 20)
        policy = Policy(allow_direct_routing=turn % 90 > 80)
        want = desired(facts, policy, cache)
        assert want == desired(facts, policy)
        assert ruleset(want, cache) == ruleset(want)


def test_cache_computes_an_item_once_and_drops_a_missing_item() -> None:
    computed: list[str] = []
    cache = IdentityCache()

    def function(item: str) -> int:
        computed.append(item)
        return len(computed)

    one, other = "one", "other"
    assert cache.map("numbers", [one, other], function) == [1, 2]
    assert cache.map("numbers", [other, one], function) == [2, 1]
    assert cache.map("numbers", [one], function, key="new") == [3]
    assert cache.map("numbers", [one], function, key="new") == [3]
    assert cache.map("numbers", [other], function, key="new") == [4]
    assert cache.map("numbers", [one], function, key="new") == [5]


def test_cache_a_new_container_makes_one_mapping_and_one_rule() -> None:
    """Unchanged mappings are the same objects, so later caches know them."""
    cache = IdentityCache()
    many = [
        container(name=f"c{i}", on=NETWORKS[:1], ports=[f"{i}:80"]) for i in range(2000, 3000, 2)
    ]
    before = desired(snapshot(*NETWORKS, *many), Policy(), cache)
    nat = ruleset(before, cache).nat
    more = container(name="more", on=NETWORKS[:1], ports=["2901:80"])
    after = desired(snapshot(*NETWORKS, *many, more), Policy(), cache)
    assert (
        len(
            {id(mapping) for mapping in after.mappings}
            - {id(mapping) for mapping in before.mappings}
        )
        == 1
    )
    old = {id(rule) for rules in nat.chains.values() for rule in rules if rule.protocol}
    chains = ruleset(after, cache).nat.chains
    new = [rule for rules in chains.values() for rule in rules]
    assert [rule.ports for rule in new if rule.protocol and id(rule) not in old] == [(2901, 2901)]
