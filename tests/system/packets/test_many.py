"""More ports and networks than one chain holds, in split chains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.harness import Failure, Regime, tcp, until
from tests.harness.sandbox import CLIENT, HOST, HOST_TOO
from tests.system.packets.asking import opened, peer

# The proxy would start two processes for each port, and does not change the chains.
pytestmark = [pytest.mark.each_variant, pytest.mark.depends_on("variant")]
PORTS = 101


@contextmanager
def many_ports(regime: Regime) -> Iterator[range]:
    """One container with every second port published, so that no two ports form a range."""
    numbers = range(30_000, 30_000 + 2 * PORTS, 2)
    with regime.container(publish=[f"{port}:80" for port in numbers]):
        yield numbers


def test_first_middle_and_last_of_many_ports_are_reached(regime: Regime) -> None:
    with many_ports(regime) as ports:
        first, middle, last = ports[0], ports[PORTS // 2], ports[-1]
        for port in (first, middle, last):
            assert opened(regime.client, port).port == 80
            assert opened(regime.client, port, address=HOST_TOO).port == 80
        assert "IPV6NAT-TCP" in regime.sandbox.rules()
        for port in (first - 1, first + 1, middle + 1, last + 1):
            assert tcp(regime.client, HOST, port) is Failure.REFUSED
        assert opened(regime.client, 8080).server == "x1"
        assert peer(tcp(regime.host, HOST, last)) == HOST
    until(lambda: "IPV6NAT-TCP" in regime.sandbox.rules(), False)
    assert opened(regime.client, 8080).server == "x1"


@pytest.mark.depends_on
def test_published_port_on_one_of_many_networks_is_reached(regime: Regime) -> None:
    port = regime.port()
    with ExitStack() as stack:
        # Docker's own pools have addresses for fewer networks.
        pools = (f"--subnet=10.77.{number}.0/24" for number in range(31))
        networks = [stack.enter_context(regime.network(pool)) for pool in pools]
        stack.enter_context(regime.container(network=networks[-1], publish=[f"{port}:80"]))
        answer = opened(regime.client, port)
        assert (answer.port, answer.peer) == (80, CLIENT)
        assert until(lambda: "-j IPV6NAT-OUT-br" in regime.sandbox.rules(), True)
        assert opened(regime.client, port).port == 80
        assert opened(regime.client, 8080).server == "x1"
