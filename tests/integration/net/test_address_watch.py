"""The address and route messages of a real kernel."""

from __future__ import annotations

import asyncio
import subprocess

import pytest

from ipv6natd.host import facts as host_facts
from ipv6natd.host.addresses import watch
from ipv6natd.model import is_interface
from tests.harness.waiting import background, until

MANY = 3000
"""Addresses whose messages overflow the buffer of an unread netlink socket."""


def nothing(*_: object) -> None:
    """Ignore the report."""


@pytest.fixture
def link(namespace: str) -> str:  # noqa: ARG001
    ip("link add one type veth peer name two")
    ip("link set one up")
    return "one"


def ip(words: str, stdin: str = "") -> str:
    done = subprocess.run(
        ["ip", *words.split(" ")], input=stdin, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def test_added_and_removed_addresses_are_reported_but_renewals_are_not(link: str) -> None:
    async def scenario() -> None:
        news: list[None] = []
        async with background(watch(lambda: news.append(None), nothing, nothing, nothing)):
            await asyncio.sleep(0)
            ip(f"address add fd00:1::1/64 dev {link} nodad")
            await until(lambda: len(news) == 1)
            # A link-local address, and a longer lifetime, as from a router advertisement.
            ip(f"address add fe80::7/64 dev {link} nodad")
            ip(f"address change fd00:1::1/64 dev {link} valid_lft 600 preferred_lft 600")
            ip(f"address add fd00:1::2/64 dev {link} nodad")
            await until(lambda: len(news) == 2)
            ip(f"address del fd00:1::2/64 dev {link}")
            await until(lambda: len(news) == 3)
            ip(f"address add fd00:1::2/64 dev {link} nodad")
            await until(lambda: len(news) == 4)

    asyncio.run(scenario())


def test_address_is_reported_after_duplicate_address_detection(link: str) -> None:
    async def scenario() -> None:
        news: list[None] = []
        ip("link set two up")
        async with background(watch(lambda: news.append(None), nothing, nothing, nothing)):
            await asyncio.sleep(0)
            ip(f"address add fd00:1::1/64 dev {link}")
            await until(lambda: news)
            shown = ip("-6 address show to fd00:1::1")
            assert "fd00:1::1" in shown
            assert "tentative" not in shown
            assert len(news) == 1

    asyncio.run(scenario())


def test_netlink_overflow_is_reported_and_the_watch_continues(link: str) -> None:
    async def scenario() -> None:
        news: list[None] = []
        async with background(
            watch(lambda: news.append(None), nothing, nothing, nothing)
        ) as watching:
            await asyncio.sleep(0)
            lines = (f"address add fd00:{n:x}::1/64 dev {link} nodad\n" for n in range(1, MANY))
            ip("-batch -", stdin="".join(lines))  # the socket is not read meanwhile
            await until(lambda: news)
            await asyncio.sleep(0.1)
            before = len(news)
            assert before < MANY - 1
            ip(f"address add fd00:ffff::1/64 dev {link} nodad")
            await until(lambda: len(news) > before)
            assert not watching.done()

    asyncio.run(scenario())


def test_container_ports_that_leave_a_bridge_are_reported_with_its_name(link: str) -> None:
    """Q7."""

    async def scenario() -> None:
        news: list[str | None] = []
        ip("link add br-x type bridge")
        for name in ("veth0a1b2c1", "veth0a1b2c2", "veth0a1b2c3"):
            ip(f"link add {name} type veth peer name peer{name[-1]}")
            ip(f"link set {name} master br-x up")
        ip(f"link set {link} master br-x")
        for name in ("vethlxcab", "veth100i0"):  # guests of LXC and Proxmox
            ip(f"link add {name} type veth peer name p{name}")
            ip(f"link set {name} master br-x")
        async with background(watch(nothing, nothing, news.append, nothing)):
            await asyncio.sleep(0)
            ip("link set veth0a1b2c1 down")
            ip("link add veth0a1b2c4 type veth peer name peer4")
            ip("link del veth0a1b2c4")  # on no bridge
            ip(f"link set {link} nomaster")  # no port of a container
            ip("link del vethlxcab")
            ip("link del veth100i0")
            ip("link del peer1")
            await until(lambda: news)
            ip("link set veth0a1b2c2 nomaster")
            await until(lambda: len(news) > 1)
            assert news == ["br-x", "br-x"]
            ip("-batch -", stdin="link del veth0a1b2c3\nlink del br-x\n")
            await until(lambda: len(news) > 2)
            assert set(news) <= {"br-x", None}

    asyncio.run(scenario())


def test_port_of_a_container_that_is_added_to_a_bridge_is_reported(link: str) -> None:
    async def scenario() -> None:
        news: list[str | None] = []
        ip("link add br-x type bridge")
        for name in ("veth0a1b2c1", "veth0a1b2c2"):
            ip(f"link add {name} type veth peer name peer{name[-1]}")
        async with background(watch(nothing, nothing, nothing, news.append)):
            await asyncio.sleep(0)
            ip(f"link set {link} master br-x")  # no port of a container
            ip("link set veth0a1b2c1 up")  # on no bridge
            await asyncio.sleep(0.1)
            assert news == []
            ip("link set veth0a1b2c2 master br-x")
            await until(lambda: news)
            ip("link set veth0a1b2c2 up")
            ip("link set peer2 up")
            await until(lambda: len(news) == 2)
            assert news == ["br-x", "br-x"]

    asyncio.run(scenario())


@pytest.mark.usefixtures("namespace")
def test_port_of_an_ending_container_is_not_reported_as_added() -> None:
    """A question to the engine at this time could start it again by its socket."""

    async def scenario() -> None:
        news: list[str | None] = []
        ip("link add br-x type bridge")
        ip("link add veth0a1b2c1 type veth peer name peer1")
        ip("link set veth0a1b2c1 master br-x up")
        ip("link set peer1 up")
        left: list[str | None] = []
        async with background(watch(nothing, nothing, left.append, news.append)):
            await asyncio.sleep(0)
            ip("link set peer1 down")
            ip("link set peer1 up")
            ip("link set peer1 down")
            ip("link del peer1")
            await until(lambda: left)
            assert news == []
            ip("link add veth0a1b2c1 type veth peer name peer1")
            ip("link set veth0a1b2c1 master br-x up")
            await until(lambda: news)

    asyncio.run(scenario())


def test_static_routes_are_reported_and_kernel_bgp_and_ra_routes_are_not(link: str) -> None:
    async def scenario() -> None:
        news: list[None] = []
        async with background(watch(nothing, lambda: news.append(None), nothing, nothing)):
            await asyncio.sleep(0)
            for change in ("add", "del"):
                ip(f"route {change} fd00:7::/64 dev {link}")
                await until(lambda: news)
                await asyncio.sleep(0.05)
                news.clear()
            ip(f"address add fe80::7/64 dev {link} nodad")
            ip(f"route add fd00:8::/64 dev {link} proto bgp")
            ip(f"route add fd00:9::/64 dev {link} proto ra")
            await asyncio.sleep(0.1)
            assert news == []

    asyncio.run(scenario())


def test_routes_are_read_and_advertised_routes_are_listed_apart(link: str) -> None:
    ip(f"address add fd00:1::1/64 dev {link} nodad")
    ip(f"route add fd00:7::/64 dev {link}")
    ip("route add unreachable fd00:8::/64")
    ip(f"route add fd00:9::/64 dev {link} proto ra")
    ip(f"route add fd00:b::/64 dev {link} table 77")
    no_names_of_rules = ("wg+", "*", "$(reboot)", '"', "a\x1ceth0", "a\x1fe", "a\x85e", "a\u2028e")
    for number, name in enumerate(no_names_of_rules, 1):
        ip(f"link add {name} type veth")
        ip(f"link set {name} up")
        ip(f"route add fd00:c:{number}::/64 dev {name}")
        ip(f"route add fd00:d:{number}::/64 dev {name} proto ra")
        ip(f"address add fd00:e:{number}::1/64 dev {name} nodad")

    def found() -> dict[str, bool]:
        learned = host_facts.advertised_routes()
        return {str(each.prefix): each not in learned for each in host_facts.routes()}

    assert found() == {
        "fd00:1::/64": True,
        "fd00:7::/64": True,
        "fd00:9::/64": False,
        "fd00:b::/64": True,
    }
    learned = {str(each.prefix) for each in host_facts.advertised_routes()}
    subnets = {str(subnet) for link in host_facts.trace_host().links for subnet in link.subnets}
    for number, name in enumerate(no_names_of_rules, 1):
        assert f"fd00:c:{number}::/64" in subnets
        assert (f"fd00:d:{number}::/64" in learned) == is_interface(name)
