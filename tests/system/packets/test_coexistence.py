"""Beside an engine that does IPv6 NAT itself: scenarios C."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.harness import Bus, Daemon, Engine, Failure, Namespace, Sandbox, serve, tcp, until
from tests.harness.fake_engine import raw_container
from tests.harness.sandbox import CLIENT, HOST, Variant
from tests.system.packets.asking import SHORT, dnats, listed, opened, peer
from tests.system.packets.by_hand import bridge_network, engine, peer_on

DOCKER_29 = """
table ip6 docker-bridges {
    map filter-forward-in-jumps {
        type ifname : verdict
        elements = { "brX" : jump filter-forward-in__brX }
    }
    map filter-forward-out-jumps {
        type ifname : verdict
        elements = { "brX" : jump filter-forward-out__brX }
    }
    map nat-postrouting-out-jumps {
        type ifname : verdict
        elements = { "brX" : jump nat-postrouting-out__brX }
    }
    chain filter-FORWARD {
        type filter hook forward priority filter; policy accept;
        oifname vmap @filter-forward-in-jumps
        iifname vmap @filter-forward-out-jumps
    }
    chain nat-POSTROUTING {
        type nat hook postrouting priority srcnat; policy accept;
        iifname vmap @nat-postrouting-out-jumps
    }
    chain nat-PREROUTING {
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local counter jump nat-prerouting-and-output
    }
    chain nat-prerouting-and-output {
        iifname != "brX" tcp dport 8080 counter dnat to [fd00:a::2]:80 comment "DNAT"
    }
    chain raw-PREROUTING {
        type filter hook prerouting priority raw; policy accept;
        ip6 daddr fd00:a::2 iifname != "brX" counter drop comment "DROP DIRECT ACCESS"
    }
    chain filter-forward-in__brX {
        ct state established,related counter accept
        iifname "brX" counter accept comment "ICC"
        ip6 daddr fd00:a::2 tcp dport 80 counter accept
        counter drop comment "UNPUBLISHED PORT DROP"
    }
    chain filter-forward-out__brX {
        ct state established,related counter accept
        counter accept comment "OUTGOING"
    }
    chain nat-postrouting-out__brX {
        oifname != "brX" ip6 saddr fd00:a::/64 counter masquerade comment "MASQUERADE"
    }
}
"""
"""The table of Docker 29 with firewall-backend=nftables, for a network with one published port."""


def engine_rules(rules: str) -> list[str]:
    """The rules of other programs. 20.10 creates no DOCKER-USER for IPv6, so ipv6natd owns it."""
    mine = ("IPV6NAT", "ipv6natd", ":DOCKER-USER")
    return [line for line in rules.splitlines() if not any(word in line for word in mine)]


@pytest.mark.parametrize("variant", ["nft", pytest.param("legacy", marks=pytest.mark.slow)])
def test_c1_c4_c5_switching_ip6tables_of_the_engine_is_followed(
    tools: None,  # noqa: ARG001
    variant: Variant,
) -> None:
    """20.10 with ip6tables on, then off with its rules left behind, then on again."""
    with (
        Sandbox(variant) as sandbox,
        Engine(sandbox, ip6tables=True) as engine,
        Bus(sandbox.dir) as bus,
    ):
        engine.network("X", "fd00:a::/64")
        x1 = engine.run("x1", "X", "--restart=always", publish=["8080:80"])
        native = sandbox.rules()
        with Daemon(sandbox, engine.endpoint, bus=bus.address) as daemon:
            with serve(x1.ns, "x1", tcp=[80]):
                assert peer(tcp(sandbox.client, HOST, 8080)) == CLIENT
                (x1_row,) = json.loads(daemon.ctl("explain", "x1", "--json=short"))
                (port,) = (one for one in x1_row["Ports"] if one["Outcome"] == "native")
                assert "-A DOCKER " in port["Rule"]
                assert (port["Connections"] >= 1, port["Server"]) == (True, "accepted")
            (row,) = listed(daemon, "mappings")
            assert row["State"] == "native"
            assert [each["ManagedBy"] for each in listed(daemon, "networks")] == ["engine"]
            assert engine_rules(sandbox.rules()) == engine_rules(native)
            assert "--dport 8080 -j DNAT" not in "\n".join(own_rules(sandbox.rules()))

            engine.stop()
            engine.ip6tables = False
            engine.start()
            state = until(lambda: states(daemon), ["active"], timeout=15)
            assert state == ["active"]
            x1 = engine.container("x1")
            with serve(x1.ns, "x1", tcp=[80]):
                opened(sandbox.client, 8080)

            engine.stop()
            engine.ip6tables = True
            engine.start()
            state = until(lambda: states(daemon), ["native"], timeout=15)
            assert state == ["native"]
            x1 = engine.container("x1")
            with serve(x1.ns, "x1", tcp=[80]):
                assert peer(tcp(sandbox.client, HOST, 8080)) == CLIENT
            assert not any("DNAT --to" in line for line in own_rules(sandbox.rules()))


def own_rules(rules: str) -> list[str]:
    return [line for line in rules.splitlines() if "-A IPV6NAT-" in line]


def states(daemon: Daemon) -> list[str]:
    return [row["State"] for row in listed(daemon, "mappings")]


def by_network(daemon: Daemon, field: str) -> dict[str, Any]:
    return {each["Name"]: each[field] for each in listed(daemon, "networks")}


@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_c3_c4_c7_networks_with_nftables_rules_of_the_engine_are_unchanged(
    tools: None,  # noqa: ARG001
    variant: Variant,
) -> None:
    """A fake engine 29, on a host without iptables rules. The engine has no rules for Y."""
    facts = (
        bridge_network("X", "fd00:a::/64"),
        bridge_network("Y", "fd00:b::/64"),
        raw_container("x1", on="X"),
        raw_container("y1", on="Y", port=8081, address="fd00:b::2"),
    )
    with (
        Sandbox(variant) as sandbox,
        peer_on(sandbox, "brX", "fd00:a::/64") as x1,
        peer_on(sandbox, "brY", "fd00:b::/64") as y1,
        engine(sandbox, *facts, version="29.0.0", api="1.52", least_api="1.44") as behind,
        Bus(sandbox.dir) as bus,
        serve(x1, "x1", tcp=[80]),
        serve(y1, "y1", tcp=[80]),
    ):
        file = sandbox.dir / "docker.nft"
        file.write_text(DOCKER_29)
        sandbox.host.run("nft", "-f", str(file))
        table = nft(sandbox.host)
        with Daemon(sandbox, behind.endpoint, bus=bus.address) as daemon:
            assert by_network(daemon, "ManagedBy") == {"X": "engine", "Y": "ipv6natd"}
            assert by_network(daemon, "Warnings")["X"] == []
            (warning,) = by_network(daemon, "Warnings")["Y"]
            assert "has IPv6 rules for other networks but none for this one" in warning
            assert sorted(states(daemon)) == ["active", "native"]
            assert dnats(sandbox.rules(), 8080) == []
            assert nft(sandbox.host) == table
            for port in (8080, 8081):
                opened(sandbox.client, port)
            rogue, address = sandbox.rogue, "fd00:a::2"
            assert tcp(rogue, address, 80, timeout=SHORT) is Failure.TIMEOUT

            # The engine is switched to another backend, and removes its table.
            sandbox.host.run("nft", "delete", "table", "ip6", "docker-bridges")
            daemon.ctl("resync")
            assert by_network(daemon, "ManagedBy") == {"X": "ipv6natd", "Y": "ipv6natd"}
            assert by_network(daemon, "Warnings") == {"X": [], "Y": []}
            opened(sandbox.client, 8080)
            assert tcp(rogue, address, 80, timeout=SHORT) is Failure.TIMEOUT


def nft(host: Namespace) -> str:
    """The engine's table without counters."""
    return host.run("nft", "--stateless", "list", "table", "ip6", "docker-bridges")


@pytest.mark.slow
def test_c7_network_without_engine_rules_is_managed_with_a_warning(
    tools: None,  # noqa: ARG001
) -> None:
    """20.10, after the test has removed its rules for one network. A restarted engine writes the
    rules again, and the network is then managed by the engine."""
    with (
        Sandbox() as sandbox,
        Engine(sandbox, ip6tables=True) as real,
        Bus(sandbox.dir) as bus,
    ):
        for name, subnet, port in (("X", "fd00:a::/64", 8080), ("Y", "fd00:b::/64", 8081)):
            real.network(name, subnet)
            real.run(f"{name}1", name, "--restart=always", publish=[f"{port}:80"])
        remove_bridge_rules(sandbox, "brY")
        with Daemon(sandbox, real.endpoint, bus=bus.address) as daemon:
            assert by_network(daemon, "ManagedBy") == {"X": "engine", "Y": "ipv6natd"}
            assert len(by_network(daemon, "Warnings")["Y"]) == 1
            with serve(real.container("Y1").ns, "y", tcp=[80]):
                opened(sandbox.client, 8081)
            with serve(real.container("X1").ns, "x", tcp=[80]):
                opened(sandbox.client, 8080)
            real.stop()
            real.start()
            engines = {"X": "engine", "Y": "engine"}
            assert until(lambda: by_network(daemon, "ManagedBy"), engines, timeout=15) == engines
            assert by_network(daemon, "Warnings")["Y"] == []


def remove_bridge_rules(sandbox: Sandbox, bridge: str) -> None:
    """Remove the engine's rules for one bridge from the tables."""
    text = sandbox.rules()
    kept = [line for line in text.splitlines() if bridge not in line.split()]
    file = sandbox.dir / "kept.rules"
    file.write_text("\n".join(kept) + "\n")
    sandbox.host.run(f"ip6tables-{sandbox.variant}-restore", str(file))


def test_c9_rootless_engine_is_skipped_with_the_reason(tools: None) -> None:  # noqa: ARG001
    facts = bridge_network("X", "fd00:a::/64"), raw_container("x1", on="X")
    with (
        Sandbox() as sandbox,
        engine(sandbox, *facts) as rootless,
        Bus(sandbox.dir) as bus,
    ):
        info = {"ServerVersion": "28.5.1", "SecurityOptions": ["name=seccomp", "name=rootless"]}
        rootless.say["/info"] = rootless.say_json(info)
        with Daemon(sandbox, rootless.endpoint, bus=bus.address) as daemon:
            (row,) = listed(daemon, "skipped")
            assert row["Reason"].startswith("the engine is rootless")
            assert listed(daemon, "networks") == listed(daemon, "mappings") == []
            assert "brX" not in sandbox.rules()
