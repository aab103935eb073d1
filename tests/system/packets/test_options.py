"""Options of networks as users write them: scenarios V."""

from __future__ import annotations

import json

import pytest

from tests.harness import Regime, until
from tests.harness.process import LabError
from tests.system.packets.asking import listed, opened

pytestmark = pytest.mark.depends_on("engine")


def test_v7_bridge_with_a_user_defined_name_is_used(regime: Regime) -> None:
    port = regime.port()
    name = "com.docker.network.bridge.name"
    made = regime.engine.docker(
        *("network", "create", "--ipv6", "--subnet=fd00:7::/64", "-o", f"{name}=my-br_0.x", "v7")
    )
    assert made
    try:
        with regime.container(network="v7", publish=[f"{port}:80"]):
            opened(regime.client, port)
            assert "-i my-br_0.x" in regime.sandbox.rules()
    finally:
        regime.engine.docker("network", "rm", "v7")


def test_v8_invalid_option_value_keeps_the_default_with_a_warning(regime: Regime) -> None:
    port = regime.port()
    bad = {
        "com.docker.network.bridge.gateway_mode_ipv6": "bogus'\n-j ACCEPT",
        "com.docker.network.host_ipv6": "no address",
    }
    # An engine that knows an option refuses the network; another engine accepts it.
    reads = dict(zip(bad, ((27, 0), (25, 0)), strict=True))
    options = {key: value for key, value in bad.items() if regime.engine.release < reads[key]}
    for key in bad.keys() - options.keys():
        with pytest.raises(LabError, match=key), regime.network(options={key: bad[key]}):
            pass
    with (
        regime.network(options=options) as network,
        regime.container(network=network, publish=[f"{port}:80"]),
    ):
        opened(regime.client, port)
        if regime.native:
            return
        (row,) = [row for row in listed(regime.daemon, "networks") if row["Name"] == network.name]
        assert len(row["Warnings"]) == len(options)
        assert all("com.docker.network." in each for each in row["Warnings"])
        said = f"network {network.name}: com.docker.network" in regime.daemon.log
        assert said == bool(options)


def test_hostile_network_name_is_in_no_rule_and_breaks_no_reply(regime: Regime) -> None:
    port = regime.port()
    name = "evil; -j ACCEPT \N{SNOWMAN} 'quoted\" net"
    words = ("network", "create", "--ipv6", "--subnet=fd00:666::/64", name)
    regime.engine.docker(*words)
    try:
        with regime.container(network=name, publish=[f"{port}:80"]):
            opened(regime.client, port)
            assert "evil" not in regime.sandbox.rules()
            assert name in [row["Name"] for row in listed(regime.daemon, "networks")]
    finally:
        regime.engine.docker("network", "rm", name)


EVIL = (
    "$(touch${IFS}/run/owned)",
    "red\x1b[31m\x1b]0;title\x07",
    "two\nlines -j ACCEPT",
    "turned \u202egnp.exe",
    'x"} 1 \\ ipv6natd_up{a="',
    "a" * 200,
)


@pytest.mark.depends_on
@pytest.mark.ours
def test_hostile_network_names_are_escaped_in_all_output(regime: Regime) -> None:
    """Engines accept each of these names. The test uses the ids of the networks."""
    port = regime.port()
    ids: list[str] = []
    try:
        for number, name in enumerate(EVIL):
            words = ("network", "create", "--ipv6", f"--subnet=fd00:66{number}::/64", name)
            ids.append(regime.engine.docker(*words).strip())
        with regime.container(network=ids[1], publish=[f"{port}:80"]) as web:
            opened(regime.client, port)
            shown = [
                regime.daemon.ctl(*words, check=False)
                for words in (
                    *((each,) for each in ("status", "mappings", "networks", "skipped", "rules")),
                    *(("metrics",), ("check",), ("explain", web.name)),
                )
            ]
            rows = listed(regime.daemon, "networks")
    finally:
        for each in ids:
            regime.engine.docker("network", "rm", each)
    until(lambda: f"withdrew [::]:{port}" in regime.daemon.log, True)
    for text in (*shown, regime.daemon.log):
        assert [line for line in text.split("\n") if not line.isprintable()] == []
    assert set(EVIL) <= {row["Name"] for row in rows}
    assert len({row["Bridge"] for row in rows}) == len(rows)


def test_bus_and_ipv6natctl_show_the_same_mapping(regime: Regime) -> None:
    port = regime.port()
    with regime.container(publish=[f"{port}:80"]) as made:
        opened(regime.client, port)
        (row,) = until(
            lambda: [r for r in listed(regime.daemon, "mappings") if r["HostPort"] == port],
            lambda found: len(found) == 1,
        )
        assert row["ContainerName"] == made.name
        assert row["ContainerAddress"] == str(made.address)
        words = ("call", "org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager")
        answer = json.loads(regime.bus.busctl("--json=short", *words, "ListMappings"))
        rows = [each for each in answer["data"][0] if each["HostPort"]["data"] == port]
        assert [each["Id"]["data"] for each in rows] == [row["Id"]]
