"""The shared labs; tests are ordered so that each is built once and one stands at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest

from tests import lab
from tests.lab.sandbox import Variant

TOOLS = ("dockerd", "docker", "ip", "nsenter", "unshare", "setpriv", "busybox", "dbus-daemon")
NETFILTER = ("iptables", "ip6tables-nft", "ip6tables-legacy", "conntrack", "nft")


@pytest.fixture(scope="session")
def tools() -> None:
    lab.need(*TOOLS, *NETFILTER)


@pytest.fixture(
    scope="session",
    params=[("nft", True), ("nft", False), ("legacy", True), ("legacy", False)],
    ids=["nft-proxy", "nft-noproxy", "legacy-proxy", "legacy-noproxy"],
)
def regime(request: pytest.FixtureRequest, tools: None) -> Iterator[lab.Regime]:  # noqa: ARG001
    """A furnished lab with the daemon running: see tests/lab/regime.py for who lives in it."""
    variant, proxy = cast(tuple[Variant, bool], request.param)
    with lab.regime(variant, proxy=proxy) as furnished:
        yield furnished
