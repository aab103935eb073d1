"""Open UDP flows follow their mapping, and flows of others are left alone: scenarios U.

A UDP client keeps one socket, and so one flow, through all that happens to a container.
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from tests.harness import Failure, Namespace, Regime, connect, serve, udp, until
from tests.harness.engine import Container, Network
from tests.harness.probe import Conversation
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO
from tests.system.packets.asking import SHORT, carried_by_nat, listed, peer, server, stopped

pytestmark = pytest.mark.depends_on("proxy")

FAR = IPv6Address("2001:db8:5::5")
"""An address that the rogue reaches by way of the host."""
MANY = 3000
TCP_REPAIR = 19
"""A socket option of linux/tcp.h: one that has it is closed without a packet."""
LATE = IPv6Address("2001:db8:7::66")
"""An address that the host has at times; it answers for it all the time."""


def flow(
    client: Namespace, port: int, *, address: IPv6Address = HOST
) -> AbstractContextManager[Conversation]:
    return connect(client, address, port, kind=socket.SOCK_DGRAM)


@contextmanager
def sending(conversation: Conversation) -> Iterator[None]:
    """Datagrams all the time, whatever becomes of them; in the end no answer is on its way."""
    done = threading.Event()

    def send() -> None:
        while not done.wait(0.01):
            with suppress(OSError):
                conversation.socket.send(b"?\n")

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        conversation.socket.settimeout(0.1)
        with suppress(TimeoutError):
            while True:
                # What was refused on the way is told here, too.
                with suppress(ConnectionError):
                    conversation.socket.recv(4096)


def published(
    regime: Regime, spec: str, inside: int = 53, *, on: str | Network = "X", ip6: str | None = None
) -> AbstractContextManager[Container]:
    return regime.container(network=on, publish=[spec], tcp=(), udp=(inside,), ip6=ip6)


def leads_to(
    regime: Regime, port: int, *addresses: IPv6Address | None, protocol: str = "udp"
) -> None:
    """Wait until rules and flows are in step with a port leading there."""
    if regime.native:
        return  # they are, when the engine says that a container runs or is gone
    wanted = [str(address) for address in addresses]

    def listing() -> list[str]:
        rows = listed(regime.daemon, "mappings")
        ours = [row for row in rows if (row["HostPort"], row["Protocol"]) == (port, protocol)]
        return [row["ContainerAddress"] for row in ours]

    assert until(listing, wanted, timeout=10) == wanted


def entries(regime: Regime, port: int) -> set[str]:
    """The numbers of the host's conntrack entries for a port; each entry has its own."""
    words = ("conntrack", "-L", "-f", "ipv6", "-p", "udp", "-o", "id", "--orig-port-dst", str(port))
    return set(re.findall(r" id=(\d+)", regime.host.run(*words)))


@contextmanager
def route(space: Namespace, address: IPv6Address, gateway: IPv6Address) -> Iterator[None]:
    """While somebody has a way to an address by another's."""
    space.ip(f"route add {address}/128 via {gateway}")
    try:
        yield
    finally:
        space.ip(f"route del {address}/128 via {gateway}")


@contextmanager
def far(regime: Regime) -> Iterator[None]:
    """While the client has an address that others reach by way of the host alone."""
    regime.client.ip(f"address add {FAR}/128 dev lo nodad")
    try:
        with route(regime.host, FAR, CLIENT):
            yield
    finally:
        regime.client.ip(f"address del {FAR}/128 dev lo")


@contextmanager
def unseen(regime: Regime, spec: str, inside: int = 53) -> Iterator[tuple[Container, ExitStack]]:
    """A container that runs already when ipv6natd, stopped until the stack is closed, sees it.

    Engines from 23 on remove, when a container starts, each entry that has its host port, whoever
    it is for. What begins after that shows what we remove.
    """
    with ExitStack() as waiting:
        waiting.enter_context(stopped(regime))
        with published(regime, spec, inside) as made:
            yield made, waiting


def test_u2_a_client_that_goes_on_sending_follows_to_another_address(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network(subnet="fd00:f:0:2::/64") as network,
        flow(regime.client, port) as client,
        ExitStack() as talk,
    ):
        with published(regime, f"{port}:53/udp", on=network, ip6="fd00:f:0:2::11") as one:
            leads_to(regime, port, one.address)
            assert server(client.ask()) == one.name
            talk.enter_context(sending(client))
        with published(regime, f"{port}:53/udp", on=network, ip6="fd00:f:0:2::22") as two:
            assert one.address != two.address
            leads_to(regime, port, two.address)
            talk.close()
            answer = client.ask()
            assert (server(answer), peer(answer)) == (two.name, CLIENT)


@pytest.mark.ours
def test_u2_a_flow_that_a_containers_answer_turned_round_follows_to_another(
    regime: Regime,
) -> None:
    """It comes when the entry of its question was just removed, from a port that is the same
    inside and outside: masqueraded, it is all that the client knows.
    """
    port = regime.port()
    spec = f"{port}:{port}/udp"
    with (
        regime.network(subnet="fd00:f:0:5::/64") as network,
        flow(regime.client, port) as client,
    ):
        with published(regime, spec, port, on=network, ip6="fd00:f:0:5::11") as one:
            leads_to(regime, port, one.address)
            own = str(client.socket.getsockname()[1])
            words = ("-p", "udp", "-s", str(one.address), "-d", str(CLIENT), "--sport", str(port))
            nat = ("--dport", own, "--src-nat", str(HOST), "--timeout", "60")
            regime.host.run("conntrack", "-I", *words, *nat)
            answer = client.ask()
            assert (server(answer), peer(answer)) == (one.name, CLIENT)
            assert entries(regime, port) == set()  # the question was none of its own
        with published(regime, spec, port, on=network, ip6="fd00:f:0:5::22") as two:
            leads_to(regime, port, two.address)
            answer = client.ask()
            assert (server(answer), peer(answer)) == (two.name, CLIENT)


def test_u2_a_host_that_sends_to_itself_follows_too(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network(subnet="fd00:f:0:3::/64") as network,
        flow(regime.host, port) as client,
    ):
        with published(regime, f"{port}:53/udp", on=network, ip6="fd00:f:0:3::11") as one:
            leads_to(regime, port, one.address)
            assert server(client.ask()) == one.name
        with published(regime, f"{port}:53/udp", on=network, ip6="fd00:f:0:3::22") as two:
            leads_to(regime, port, two.address)
            assert server(client.ask()) == two.name
            assert carried_by_nat(regime.host, port, "udp") != []


def test_u3_a_client_that_was_there_before_the_container_reaches_it(regime: Regime) -> None:
    port = regime.port()
    with flow(regime.client, port) as client:
        assert client.ask() is Failure.REFUSED
        with ExitStack() as talk:
            talk.enter_context(sending(client))
            with published(regime, f"{port}:53/udp") as made:
                leads_to(regime, port, made.address)
                talk.close()
                answer = client.ask()
                assert (server(answer), peer(answer)) == (made.name, CLIENT)


@pytest.mark.ours
def test_u3_a_flow_that_the_proxy_took_goes_on_by_nat(regime: Regime) -> None:
    port = regime.port()
    with unseen(regime, f"{port}:53/udp") as (made, waiting), flow(regime.client, port) as client:
        before = client.ask(timeout=SHORT)
        # The proxy hides who asks; without it nobody answers.
        assert isinstance(before, Failure) != regime.proxy
        assert peer(before) != CLIENT
        waiting.close()
        leads_to(regime, port, made.address)
        after = client.ask()
        assert (server(after), peer(after)) == (made.name, CLIENT)


@pytest.mark.ours
def test_u3_a_flow_that_an_answer_of_the_proxys_turned_round_goes_on_by_nat(
    regime: Regime,
) -> None:
    """It comes when the entry of its question was just removed, and makes one of its own."""
    port = regime.port()
    with unseen(regime, f"{port}:53/udp") as (made, waiting), flow(regime.client, port) as client:
        own = str(client.socket.getsockname()[1])
        words = ("-p", "udp", "-s", str(HOST), "-d", str(CLIENT), "--sport", str(port))
        regime.host.run("conntrack", "-I", *words, "--dport", own, "--timeout", "60")
        assert peer(client.ask(timeout=SHORT)) != CLIENT
        waiting.close()
        leads_to(regime, port, made.address)
        after = client.ask()
        assert (server(after), peer(after)) == (made.name, CLIENT)


@pytest.mark.ours
def test_u3_a_client_that_was_there_before_the_hosts_address_reaches_the_container(
    regime: Regime,
) -> None:
    """As with an address that moves from host to host, whose clients go on sending meanwhile."""
    port = regime.port()
    with (
        route(regime.client, LATE, HOST),
        published(regime, f"{port}:53/udp") as made,
        flow(regime.client, port, address=LATE) as client,
    ):
        leads_to(regime, port, made.address)
        # Without that address the host is a router to it, and its way there is a link without it.
        regime.host.ip(f"route add {LATE}/128 dev ext0")
        assert isinstance(client.ask(timeout=SHORT), Failure)
        assert len(entries(regime, port)) == 1
        regime.host.ip(f"address add {LATE}/128 dev ext0 nodad preferred_lft 0")
        try:
            # The userland proxy may answer until the daemon has removed the entry.
            assert until(lambda: peer(client.ask(timeout=SHORT)), CLIENT, timeout=5) == CLIENT
            assert server(client.ask()) == made.name
        finally:
            regime.host.ip(f"address del {LATE}/128 dev ext0")
            regime.host.ip(f"route del {LATE}/128 dev ext0")


@pytest.mark.ours
def test_u4_a_binding_to_an_address_concerns_flows_to_that_address_alone(regime: Regime) -> None:
    port = regime.port()
    with (
        unseen(regime, f"[{HOST_TOO}]:{port}:53/udp") as (made, waiting),
        flow(regime.client, port, address=HOST_TOO) as asked,
        flow(regime.client, port) as other,
    ):
        assert other.ask() is Failure.REFUSED
        mine = entries(regime, port)
        assert len(mine) == 1
        assert peer(asked.ask(timeout=SHORT)) != CLIENT
        waiting.close()
        leads_to(regime, port, made.address)
        assert entries(regime, port) == mine
        answer = asked.ask()
        assert (server(answer), peer(answer)) == (made.name, CLIENT)
        regime.engine.docker("rm", "--force", made.name)
        leads_to(regime, port)
        assert entries(regime, port) == mine


@pytest.mark.ours
def test_u8_a_client_that_comes_back_with_its_port_meets_who_is_there_now(regime: Regime) -> None:
    """TCP: what it still sends while its container goes may find a rule that leads there, and is
    taken for an open connection; and so is what it begins from that port, for five minutes."""
    port, own = regime.port(), 45678
    with regime.network(subnet="fd00:f:0:6::/64") as network, ExitStack() as stack:
        with regime.container(
            network=network, publish=[f"{port}:80"], udp=(), ip6="fd00:f:0:6::11"
        ) as one:
            leads_to(regime, port, one.address, protocol="tcp")
            before = stack.enter_context(connect(regime.client, HOST, port, source_port=own))
            assert server(before.ask()) == one.name
            stack.enter_context(stopped(regime))
            regime.engine.docker("rm", "--force", one.name)
            before.socket.send(b"?\n")
            # Neither side says a word more.
            before.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        stack.close()
        leads_to(regime, port, protocol="tcp")
        with regime.container(
            network=network, publish=[f"{port}:80"], udp=(), ip6="fd00:f:0:6::22"
        ) as two:
            leads_to(regime, port, two.address, protocol="tcp")
            with connect(regime.client, HOST, port, source_port=own) as again:
                assert server(again.ask()) == two.name


@pytest.mark.ours
def test_u2_thousands_of_flows_follow_as_soon_as_the_rules_are_there(
    regime: Regime, tmp_path: Path
) -> None:
    """No two go to the same place, so that nothing but each by itself can be forgotten."""
    port = regime.port()
    with published(regime, f"{port}:53/udp") as made:
        leads_to(regime, port, made.address)
        lines = "".join(
            f"-I -p udp -s {CLIENT} -d {HOST} --sport {own} --dport {port} -t 120 -r fd00:f:0:6::"
            f"{own:x} -q {CLIENT} --reply-port-src 53 --reply-port-dst {own}\n"
            for own in range(20000, 20000 + MANY)
        )
        file = tmp_path / "flows"
        file.write_text(lines)
        with stopped(regime):
            regime.host.run(f"ip6tables-{regime.variant}", "-t", "nat", "-F", "IPV6NAT-DNAT")
            regime.host.run("conntrack", "-R", str(file))
            assert len(entries(regime, port)) > MANY // 2
        assert until(lambda: entries(regime, port), set(), timeout=5) == set()


@pytest.mark.ours
def test_u5_flows_of_others_live_whatever_their_ports(regime: Regime) -> None:
    outside, inside = regime.port(2), regime.port()
    ports = (outside, inside, outside + 1)

    def standing() -> set[str]:
        return set().union(*(entries(regime, port) for port in ports))

    with (
        far(regime),
        unseen(regime, f"{outside}:{inside}/udp", inside) as (made, waiting),
        serve(regime.client, "client", udp=ports),
        serve(regime.host, "host", udp=[inside, outside + 1]),
        flow(regime.client, outside) as ours,
    ):
        for port in ports[:2]:
            # Through the host from a peer and from a container, to the same ports elsewhere.
            assert server(udp(regime.rogue, FAR, port)) == "client"
            assert server(udp(regime.y1.ns, CLIENT, port)) == "client"
        # An engine that looks for the container's port would take the first of these for its own.
        for port in ports[1:]:
            assert server(udp(regime.client, HOST, port)) == "host"
        before = standing()
        assert len(before) == 6
        ours.ask(timeout=SHORT)
        waiting.close()
        leads_to(regime, outside, made.address)
        # The proxy may have asked the container on its own.
        assert before - standing() == set()
        assert server(ours.ask()) == made.name
        regime.engine.docker("rm", "--force", made.name)
        leads_to(regime, outside)
        assert before - standing() == set()


def test_u7_the_answer_comes_from_the_address_that_was_asked(regime: Regime) -> None:
    port = regime.port()
    # A connected socket hears nobody but whom it asked.
    with (
        flow(regime.client, port) as one,
        flow(regime.client, port, address=HOST_TOO) as two,
    ):
        assert one.ask() is Failure.REFUSED
        assert two.ask() is Failure.REFUSED
        with published(regime, f"{port}:53/udp") as made:
            leads_to(regime, port, made.address)
            assert server(two.ask()) == made.name
            assert server(one.ask()) == made.name


def test_u8_after_the_container_a_client_is_refused_and_not_left_waiting(regime: Regime) -> None:
    port = regime.port()
    with flow(regime.client, port) as client:
        with published(regime, f"{port}:53/udp") as made:
            leads_to(regime, port, made.address)
            assert server(client.ask()) == made.name
            assert len(carried_by_nat(regime.host, port, "udp")) == 1
        leads_to(regime, port)
        assert carried_by_nat(regime.host, port, "udp") == []
        # The kernel limits how many refusals it sends a second.
        refused = until(lambda: client.ask(timeout=SHORT), Failure.REFUSED)
        assert refused is Failure.REFUSED


def test_flows_that_began_while_somebody_had_flushed_our_rules_come_back(regime: Regime) -> None:
    port = regime.port()
    with (
        published(regime, f"{port}:53/udp") as made,
        flow(regime.client, port) as client,
    ):
        leads_to(regime, port, made.address)
        with stopped(regime):
            regime.host.run(f"ip6tables-{regime.variant}", "-t", "nat", "-F", "IPV6NAT-DNAT")
            before = client.ask(timeout=SHORT)
            assert peer(before) != CLIENT
        until(lambda: str(port) in regime.sandbox.rules(), True)
        answer = until(lambda: client.ask(timeout=SHORT), lambda each: peer(each) == CLIENT)
        assert (server(answer), peer(answer)) == (made.name, CLIENT)
