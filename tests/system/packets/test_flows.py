"""Open UDP flows follow their mapping, and unrelated flows are kept: scenarios U.

A UDP client keeps one socket, and so one flow, during all changes of a container.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from tests.harness import Failure, Namespace, Regime, connect, serve, udp, until
from tests.harness.engine import Container, Network
from tests.harness.probe import Conversation
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO
from tests.system.packets.asking import (
    SHORT,
    carried_by_nat,
    listed,
    peer,
    repeated,
    server,
    stopped,
)

pytestmark = pytest.mark.depends_on("proxy")

FAR = IPv6Address("2001:db8:5::5")
"""An address that the rogue reaches through the host."""
MANY = 3000
TCP_REPAIR = 19
"""A socket option of linux/tcp.h: a socket with it closes without a packet."""
LATE = IPv6Address("2001:db8:7::66")
"""An address that the test adds to the host; the client always routes it to the host."""


def flow(
    client: Namespace, port: int, *, address: IPv6Address = HOST
) -> AbstractContextManager[Conversation]:
    return connect(client, address, port, kind=socket.SOCK_DGRAM)


@contextmanager
def sending(conversation: Conversation) -> Iterator[None]:
    """Send datagrams continuously. At the end no reply is pending."""

    def send() -> None:
        with suppress(OSError):
            conversation.socket.send(b"?\n")

    try:
        with repeated(send, 0.01):
            yield
    finally:
        conversation.socket.settimeout(0.1)
        with suppress(TimeoutError):
            while True:
                # recv also raises the errors of refused datagrams.
                with suppress(ConnectionError):
                    conversation.socket.recv(4096)


def published(
    regime: Regime, spec: str, inside: int = 53, *, on: str | Network = "X", ip6: str | None = None
) -> AbstractContextManager[Container]:
    return regime.container(network=on, publish=[spec], tcp=(), udp=(inside,), ip6=ip6)


def wait_for_mapping(
    regime: Regime, port: int, *addresses: IPv6Address | None, protocol: str = "udp"
) -> None:
    """Wait until ipv6natd lists exactly these container addresses for the port."""
    if regime.native:
        return  # the engine updates its rules before it reports a start or a removal
    wanted = [str(address) for address in addresses]

    def listing() -> list[str]:
        rows = listed(regime.daemon, "mappings")
        ours = [row for row in rows if (row["HostPort"], row["Protocol"]) == (port, protocol)]
        return [row["ContainerAddress"] for row in ours]

    assert until(listing, wanted, timeout=10) == wanted


def entries(regime: Regime, port: int) -> set[str]:
    """The ids of the host's conntrack entries for a port."""
    words = ("-p", "udp", "-o", "id", "--orig-port-dst", str(port))
    return set(re.findall(r" id=(\d+)", regime.host.flows(*words)))


@contextmanager
def route(space: Namespace, address: IPv6Address, gateway: IPv6Address) -> Iterator[None]:
    """A route to an address through a gateway, until the end of the context."""
    space.ip(f"route add {address}/128 via {gateway}")
    try:
        yield
    finally:
        space.ip(f"route del {address}/128 via {gateway}")


@contextmanager
def far(regime: Regime) -> Iterator[None]:
    """An address of the client that others reach only through the host."""
    regime.client.ip(f"address add {FAR}/128 dev lo nodad")
    try:
        with route(regime.host, FAR, CLIENT):
            yield
    finally:
        regime.client.ip(f"address del {FAR}/128 dev lo")


@contextmanager
def started_while_stopped(
    regime: Regime, spec: str, inside: int = 53
) -> Iterator[tuple[Container, ExitStack]]:
    """A container that starts while ipv6natd is stopped; closing the stack continues ipv6natd.

    Since 23, an engine deletes all entries with the host port when a container starts. Flows that
    begin later show the deletions of ipv6natd.
    """
    with ExitStack() as waiting:
        waiting.enter_context(stopped(regime))
        with published(regime, spec, inside) as made:
            yield made, waiting


def test_u2_open_flow_follows_the_port_to_a_new_container_address(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network(subnet="fd00:f:0:2::/64") as network,
        flow(regime.client, port) as client,
        ExitStack() as talk,
    ):
        with published(regime, f"{port}:53/udp", on=network, ip6="fd00:f:0:2::11") as one:
            wait_for_mapping(regime, port, one.address)
            assert server(client.ask()) == one.name
            talk.enter_context(sending(client))
        with published(regime, f"{port}:53/udp", on=network, ip6="fd00:f:0:2::22") as two:
            assert one.address != two.address
            wait_for_mapping(regime, port, two.address)
            talk.close()
            answer = client.ask()
            assert (server(answer), peer(answer)) == (two.name, CLIENT)


@pytest.mark.ours
def test_u2_flow_with_an_entry_from_the_containers_reply_follows_the_port(
    regime: Regime,
) -> None:
    """The reply arrives after the entry of its request was deleted. The container port and the host
    port are equal, so the client accepts the masqueraded reply.
    """
    port = regime.port()
    spec = f"{port}:{port}/udp"
    with (
        regime.network(subnet="fd00:f:0:5::/64") as network,
        flow(regime.client, port) as client,
    ):
        with published(regime, spec, port, on=network, ip6="fd00:f:0:5::11") as one:
            wait_for_mapping(regime, port, one.address)
            own = str(client.socket.getsockname()[1])
            words = ("-p", "udp", "-s", str(one.address), "-d", str(CLIENT), "--sport", str(port))
            nat = ("--dport", own, "--src-nat", str(HOST), "--timeout", "60")
            regime.host.run("conntrack", "-I", *words, *nat)
            answer = client.ask()
            assert (server(answer), peer(answer)) == (one.name, CLIENT)
            assert entries(regime, port) == set()  # the request created no entry
        with published(regime, spec, port, on=network, ip6="fd00:f:0:5::22") as two:
            wait_for_mapping(regime, port, two.address)
            answer = client.ask()
            assert (server(answer), peer(answer)) == (two.name, CLIENT)


def test_u2_flow_from_the_host_itself_follows_the_port(regime: Regime) -> None:
    port = regime.port()
    with (
        regime.network(subnet="fd00:f:0:3::/64") as network,
        flow(regime.host, port) as client,
    ):
        with published(regime, f"{port}:53/udp", on=network, ip6="fd00:f:0:3::11") as one:
            wait_for_mapping(regime, port, one.address)
            assert server(client.ask()) == one.name
        with published(regime, f"{port}:53/udp", on=network, ip6="fd00:f:0:3::22") as two:
            wait_for_mapping(regime, port, two.address)
            assert server(client.ask()) == two.name
            assert carried_by_nat(regime.host, port, "udp") != []


def test_u3_flow_from_before_the_container_reaches_it(regime: Regime) -> None:
    port = regime.port()
    with flow(regime.client, port) as client:
        assert client.ask() is Failure.REFUSED
        with ExitStack() as talk:
            talk.enter_context(sending(client))
            with published(regime, f"{port}:53/udp") as made:
                wait_for_mapping(regime, port, made.address)
                talk.close()
                answer = client.ask()
                assert (server(answer), peer(answer)) == (made.name, CLIENT)


@pytest.mark.ours
def test_u3_flow_through_the_proxy_moves_to_nat(regime: Regime) -> None:
    port = regime.port()
    with (
        started_while_stopped(regime, f"{port}:53/udp") as (made, waiting),
        flow(regime.client, port) as client,
    ):
        before = client.ask(timeout=SHORT)
        # The proxy hides the client; without the proxy the request has no answer.
        assert isinstance(before, Failure) != regime.proxy
        assert peer(before) != CLIENT
        waiting.close()
        wait_for_mapping(regime, port, made.address)
        after = client.ask()
        assert (server(after), peer(after)) == (made.name, CLIENT)


@pytest.mark.ours
def test_u3_flow_with_an_entry_from_the_proxys_reply_moves_to_nat(
    regime: Regime,
) -> None:
    """The reply arrives after the entry of its request was deleted, and creates another entry."""
    port = regime.port()
    with (
        started_while_stopped(regime, f"{port}:53/udp") as (made, waiting),
        flow(regime.client, port) as client,
    ):
        own = str(client.socket.getsockname()[1])
        words = ("-p", "udp", "-s", str(HOST), "-d", str(CLIENT), "--sport", str(port))
        regime.host.run("conntrack", "-I", *words, "--dport", own, "--timeout", "60")
        assert peer(client.ask(timeout=SHORT)) != CLIENT
        waiting.close()
        wait_for_mapping(regime, port, made.address)
        after = client.ask()
        assert (server(after), peer(after)) == (made.name, CLIENT)


@pytest.mark.ours
def test_u3_flow_from_before_the_host_address_reaches_the_container(
    regime: Regime,
) -> None:
    """As with an address that moves between hosts while its clients continue to send."""
    port = regime.port()
    with (
        route(regime.client, LATE, HOST),
        published(regime, f"{port}:53/udp") as made,
        flow(regime.client, port, address=LATE) as client,
    ):
        wait_for_mapping(regime, port, made.address)
        # Without the address the host routes it to ext0, a link without this address.
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
def test_u4_address_binding_affects_only_flows_to_that_address(regime: Regime) -> None:
    port = regime.port()
    with (
        started_while_stopped(regime, f"[{HOST_TOO}]:{port}:53/udp") as (made, waiting),
        flow(regime.client, port, address=HOST_TOO) as asked,
        flow(regime.client, port) as other,
    ):
        assert other.ask() is Failure.REFUSED
        mine = entries(regime, port)
        assert len(mine) == 1
        assert peer(asked.ask(timeout=SHORT)) != CLIENT
        waiting.close()
        wait_for_mapping(regime, port, made.address)
        assert entries(regime, port) == mine
        answer = asked.ask()
        assert (server(answer), peer(answer)) == (made.name, CLIENT)
        regime.engine.docker("rm", "--force", made.name)
        wait_for_mapping(regime, port)
        assert entries(regime, port) == mine


@pytest.mark.ours
def test_u8_reused_client_port_reaches_the_new_container(regime: Regime) -> None:
    """TCP: a packet during the removal of the container may match the old rule and create an open
    entry. New connections from the same port then match this entry for five minutes."""
    port, own = regime.port(), 45678
    with regime.network(subnet="fd00:f:0:6::/64") as network, ExitStack() as stack:
        with regime.container(
            network=network, publish=[f"{port}:80"], udp=(), ip6="fd00:f:0:6::11"
        ) as one:
            wait_for_mapping(regime, port, one.address, protocol="tcp")
            before = stack.enter_context(connect(regime.client, HOST, port, source_port=own))
            assert server(before.ask()) == one.name
            stack.enter_context(stopped(regime))
            regime.engine.docker("rm", "--force", one.name)
            before.socket.send(b"?\n")
            # Neither endpoint sends another packet.
            before.socket.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        stack.close()
        wait_for_mapping(regime, port, protocol="tcp")
        with regime.container(
            network=network, publish=[f"{port}:80"], udp=(), ip6="fd00:f:0:6::22"
        ) as two:
            wait_for_mapping(regime, port, two.address, protocol="tcp")
            with connect(regime.client, HOST, port, source_port=own) as again:
                assert server(again.ask()) == two.name


@pytest.mark.ours
def test_u2_thousands_of_stale_entries_are_deleted_after_a_repair(
    regime: Regime, tmp_path: Path
) -> None:
    """Each entry has another reply source, so that each must be deleted by itself."""
    port = regime.port()
    with published(regime, f"{port}:53/udp") as made:
        wait_for_mapping(regime, port, made.address)
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
def test_u5_unrelated_flows_with_the_same_ports_are_kept(regime: Regime) -> None:
    outside, inside = regime.port(2), regime.port()
    ports = (outside, inside, outside + 1)

    def current_entries() -> set[str]:
        return set().union(*(entries(regime, port) for port in ports))

    with (
        far(regime),
        started_while_stopped(regime, f"{outside}:{inside}/udp", inside) as (made, waiting),
        serve(regime.client, "client", udp=ports),
        serve(regime.host, "host", udp=[inside, outside + 1]),
        flow(regime.client, outside) as ours,
    ):
        for port in ports[:2]:
            # Through the host, from a peer and from a container, to the same ports of other hosts.
            assert server(udp(regime.rogue, FAR, port)) == "client"
            assert server(udp(regime.y1.ns, CLIENT, port)) == "client"
        # An engine that searches for the container's port would delete the first of these.
        for port in ports[1:]:
            assert server(udp(regime.client, HOST, port)) == "host"
        before = current_entries()
        assert len(before) == 6
        ours.ask(timeout=SHORT)
        waiting.close()
        wait_for_mapping(regime, outside, made.address)
        # The proxy may have created further entries.
        assert before - current_entries() == set()
        assert server(ours.ask()) == made.name
        regime.engine.docker("rm", "--force", made.name)
        wait_for_mapping(regime, outside)
        assert before - current_entries() == set()


def test_u7_reply_comes_from_the_requested_address(regime: Regime) -> None:
    port = regime.port()
    # A connected socket receives only packets of its peer.
    with (
        flow(regime.client, port) as one,
        flow(regime.client, port, address=HOST_TOO) as two,
    ):
        assert one.ask() is Failure.REFUSED
        assert two.ask() is Failure.REFUSED
        with published(regime, f"{port}:53/udp") as made:
            wait_for_mapping(regime, port, made.address)
            assert server(two.ask()) == made.name
            assert server(one.ask()) == made.name


def test_u8_client_of_a_removed_container_is_refused(regime: Regime) -> None:
    port = regime.port()
    with flow(regime.client, port) as client:
        with published(regime, f"{port}:53/udp") as made:
            wait_for_mapping(regime, port, made.address)
            assert server(client.ask()) == made.name
            assert len(carried_by_nat(regime.host, port, "udp")) == 1
        wait_for_mapping(regime, port)
        assert carried_by_nat(regime.host, port, "udp") == []
        # The kernel limits the rate of ICMPv6 errors.
        refused = until(lambda: client.ask(timeout=SHORT), Failure.REFUSED)
        assert refused is Failure.REFUSED


def test_flow_that_began_while_rules_were_flushed_reaches_the_container(regime: Regime) -> None:
    port = regime.port()
    with (
        published(regime, f"{port}:53/udp") as made,
        flow(regime.client, port) as client,
    ):
        wait_for_mapping(regime, port, made.address)
        with stopped(regime):
            regime.host.run(f"ip6tables-{regime.variant}", "-t", "nat", "-F", "IPV6NAT-DNAT")
            before = client.ask(timeout=SHORT)
            assert peer(before) != CLIENT
        until(lambda: str(port) in regime.sandbox.rules(), True)
        answer = until(lambda: client.ask(timeout=SHORT), lambda each: peer(each) == CLIENT)
        assert (server(answer), peer(answer)) == (made.name, CLIENT)
