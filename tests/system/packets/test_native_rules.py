"""Beside native nft rules in the tables of ip6tables: Q1. ip6tables-save refuses such tables."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.harness import Failure, Wanted, serve, tcp, until
from tests.harness.sandbox import HOST
from tests.system.packets.asking import opened
from tests.system.packets.small import Small, small

NATIVE_RULES = {
    "mailcow": "nat POSTROUTING ip6 saddr fd4d::/64 counter snat to 2001:db8:1::10",
    "quota": "filter FORWARD iifname tap0 quota over 5 mbytes drop",
    "raw": "raw PREROUTING numgen random mod 2 0 continue",
}


@pytest.fixture(params=NATIVE_RULES)
def lab(request: pytest.FixtureRequest, tools: None) -> Iterator[Small]:  # noqa: ARG001
    with small(Wanted(None, "nft", proxy=False)) as lab:
        lab.daemon.start()
        opened(lab.client, 8080)
        table, chain, rule = NATIVE_RULES[request.param].split(" ", 2)
        lab.sandbox.host.run("nft", "insert", "rule", "ip6", table, chain, rule)
        assert f"*{table}" not in lab.sandbox.rules()
        yield lab


def test_q1_ports_open_close_and_heal_beside_a_native_nft_rule(lab: Small) -> None:
    host, daemon = lab.sandbox.host, lab.daemon
    x2 = lab.engine.run("x2", "X", publish=["8081:80"])
    with serve(x2.ns, "x2", tcp=[80]):
        opened(lab.client, 8081)
    lab.engine.rm("x2")
    assert until(lambda: tcp(lab.client, HOST, 8081), Failure.REFUSED) is Failure.REFUSED

    for chain in ("nat IPV6NAT-DNAT", "filter FORWARD", "raw IPV6NAT-SRC"):
        table, name = chain.split()
        host.run("nft", "flush", "chain", "ip6", table, name)
        assert until(lambda: daemon.log.count("restoring them"), 1, timeout=5)
        opened(lab.client, 8080)
    daemon.stop()
    host.run("nft", "flush", "chain", "ip6", "filter", "FORWARD")
    daemon.start()
    opened(lab.client, 8080)

    daemon.stop()
    daemon.flush()
    assert "IPV6NAT" not in host.run("nft", "list", "ruleset")
