"""Hand-made bridges and containers, behind a fake engine.

For tests without a real engine: an engine newer than those of the suites, and SCTP. Some kernels
have no SCTP sockets, so their engine cannot publish an SCTP port.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv6Network
from typing import Any

from tests.harness import Namespace, Sandbox
from tests.harness.fake_engine import FakeEngine, raw_network
from tests.harness.sandbox import namespace


@contextmanager
def peer_on(sandbox: Sandbox, bridge: str, subnet: str) -> Iterator[Namespace]:
    """A bridge of the host and a namespace on it, which has the subnet's second address."""
    net, host = IPv6Network(subnet), sandbox.host
    with namespace(sandbox.name, bridge) as made:
        host.ip(f"link add {bridge} type bridge")
        host.ip(f"link add v{bridge} type veth peer name eth0 netns {made.path.name}")
        host.ip(f"link set v{bridge} master {bridge} up")
        host.ip(f"link set {bridge} up")
        host.ip(f"address add {net[1]}/{net.prefixlen} dev {bridge} nodad")
        made.ip("link set lo up")
        made.ip("link set eth0 up")
        made.ip(f"address add {net[2]}/{net.prefixlen} dev eth0 nodad")
        made.ip(f"route add default via {net[1]}")
        yield made


@contextmanager
def engine(
    sandbox: Sandbox,
    *facts: dict[str, Any],
    version: str = "28.5.1",
    api: str = "1.51",
    least_api: str = "1.24",
) -> Iterator[FakeEngine]:
    """A fake engine with these networks and containers."""
    path = sandbox.dir / "engine.sock"
    made = FakeEngine(path, version=version, api=api, least_api=least_api)
    made.have(*facts)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def bridge_network(name: str, subnet: str) -> dict[str, Any]:
    """A network; its bridge is `br` and the name of the network."""
    return raw_network(name, subnet, Options={"com.docker.network.bridge.name": f"br{name}"})
