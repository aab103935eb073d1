"""The host's conditions: scenarios K, and F2 to F11. Each builds a lab of its own.

A namespace cannot be a kernel with ipv6.disable=1 or without a table, or a host without
br_netfilter: tests/unit/host/test_findings.py tests the findings for them.
"""

from __future__ import annotations

import fcntl
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any, cast

import pytest

from tests.harness import (
    Bus,
    Container,
    Daemon,
    Engine,
    Failure,
    Namespace,
    Sandbox,
    need,
    serve,
    tcp,
    udp,
    until,
)
from tests.harness.process import end, run, spawn
from tests.harness.rivals import firewalld, inside, ufw
from tests.harness.sandbox import CLIENT, HOST, Variant
from tests.system.packets.asking import dnats, listed, opened, peer, server

FORWARDING = "net.ipv6.conf.all.forwarding"
DISABLED = "net.ipv6.conf.all.disable_ipv6"


@dataclass(frozen=True, kw_only=True)
class Small:
    """A host with an engine, a bus and the daemon, a network X and, on it, x1 with port 8080."""

    sandbox: Sandbox
    engine: Engine
    bus: Bus
    daemon: Daemon
    x1: Container

    @property
    def host(self) -> Namespace:
        return self.sandbox.host

    @property
    def client(self) -> Namespace:
        return self.sandbox.client

    @property
    def reason(self) -> str:
        """StateReason."""
        return self.property("StateReason")

    @property
    def state(self) -> str:
        return self.property("State")

    def property(self, name: str) -> str:
        words = ("org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager", name)
        answer: dict[str, Any] = json.loads(self.bus.busctl("-j", "get-property", *words))
        return str(answer["data"])

    def findings(self, about: str) -> list[tuple[str, str]]:
        """Severity and command of the findings about a part of the host."""
        rows = json.loads(self.daemon.ctl("findings", "--json=short", check=False))
        return [(row["Severity"], row["Command"]) for row in rows if row["About"] == about]

    def looked(self) -> str:
        """Resync; return the state and its reason."""
        self.daemon.ctl("resync")
        return f"{self.state}: {self.reason}"

    def ip6tables(self, *words: str) -> str:
        return self.host.run(f"ip6tables-{self.sandbox.variant}", *words)


@contextmanager
def small(variant: Variant) -> Iterator[Small]:
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(variant))
        engine = stack.enter_context(Engine(sandbox))
        bus = stack.enter_context(Bus(sandbox.dir, names=["org.fedoraproject.FirewallD1"]))
        daemon = stack.enter_context(Daemon(sandbox, engine.endpoint, bus=bus.address, start=False))
        engine.network("X", "fd00:a::/64")
        x1 = engine.run("x1", "X", publish=["8080:80"])
        stack.enter_context(serve(x1.ns, "x1", tcp=[80]))
        yield Small(sandbox=sandbox, engine=engine, bus=bus, daemon=daemon, x1=x1)


@pytest.fixture(scope="module", params=["nft", "legacy"])
def made(request: pytest.FixtureRequest, tools: None) -> Iterator[Small]:  # noqa: ARG001
    with small(cast(Variant, request.param)) as lab:
        yield lab


@pytest.fixture
def lab(made: Small) -> Iterator[Small]:
    """A lab with a running daemon, which is synced before and after the test."""
    if made.daemon.process is None or made.daemon.process.poll() is not None:
        made.daemon.start()
    opened(made.client, 8080)
    assert made.looked() == "synced: "
    yield made
    assert made.looked() == "synced: "
    opened(made.client, 8080)


# The kernel.


def test_k1_disabled_forwarding_is_reported_with_the_command_until_resolved(lab: Small) -> None:
    lab.host.sysctl(FORWARDING, 0)
    try:
        assert tcp(lab.client, HOST, 8080, timeout=0.3) is Failure.TIMEOUT
        said = lab.looked()
        assert said.startswith("degraded: IPv6 forwarding is off")
        assert said.endswith("sysctl -w net.ipv6.conf.all.forwarding=1")
        assert lab.daemon.log.count("WARNING IPv6 forwarding is off") == 1
        assert "IPv6 forwarding is off" in lab.daemon.wait_state("degraded")
        assert lab.findings("forwarding") == [("error", said.rpartition(": ")[2])]
        key = said.split()[-1].split("=")
        lab.host.sysctl(key[0], key[1])
        assert lab.looked() == "synced: "
        assert "resolved: IPv6 forwarding is off" in lab.daemon.log
        opened(lab.client, 8080)
        # Without a resync, as soon as somebody asks.
        lab.host.sysctl(FORWARDING, 0)
        assert until(lambda: lab.findings("forwarding") != [], True, timeout=5)
        lab.host.sysctl(FORWARDING, 1)
        assert until(lambda: lab.findings("forwarding"), [], timeout=5) == []
    finally:
        lab.host.sysctl(FORWARDING, 1)


def test_k2_default_route_lost_by_forwarding_is_reported(lab: Small) -> None:
    lab.host.ip("-6 route add default via 2001:db8:1::3 dev ext0 proto ra")
    try:
        assert lab.host.sysctl("net.ipv6.conf.ext0.accept_ra") == "1"
        said = lab.looked()
        assert said.startswith("degraded: the default route of ext0 comes from router adv")
        assert said.endswith("sysctl -w net.ipv6.conf.ext0.accept_ra=2")
        lab.host.sysctl("net.ipv6.conf.ext0.accept_ra", 2)
        assert lab.looked() == "synced: "
    finally:
        lab.host.ip("-6 route del default")
        lab.host.sysctl("net.ipv6.conf.ext0.accept_ra", 1)


def test_k3_disabled_ipv6_is_reported_and_the_daemon_starts(made: Small) -> None:
    """On another host: the kernel removes all addresses and restores none."""
    with Sandbox(made.sandbox.variant) as sandbox, Bus(sandbox.dir) as bus:
        sandbox.host.sysctl(DISABLED, 1)
        with Daemon(sandbox, made.engine.endpoint, bus=bus.address, start=False) as daemon:
            daemon.start(wait="degraded")
            assert daemon.status.endswith("sysctl -w net.ipv6.conf.all.disable_ipv6=0")
            assert "READY=1" in daemon.notices
            sandbox.host.sysctl(DISABLED, 0)
            daemon.ctl("resync")
            daemon.wait_state("degraded", "synced")
            assert "disable_ipv6" not in daemon.status


def test_router_with_the_link_local_address_of_a_bridge_is_reached(lab: Small) -> None:
    """Docker up to 26 gives fe80::1 to each bridge, and many routers have this address."""
    router, far = IPv6Address("fe80::1"), IPv6Address("2001:db8:70::9")
    assert f" {router}/64 " in lab.host.ip("-6 address show dev brX")
    with ExitStack() as stack:
        for ns, words in (
            (lab.client, f"address {{}} {router}/64 dev ext0 nodad"),
            (lab.client, f"address {{}} {far}/128 dev lo"),
            (lab.host, f"route {{}} {far}/128 via {router} dev ext0"),
        ):
            ns.ip(words.format("add"))
            stack.callback(ns.ip, words.format("del").removesuffix(" nodad"))
        lab.host.ip("-6 neigh flush dev ext0")
        with serve(lab.client, "far", tcp=[90], udp=[90]):
            for ns in (lab.host, lab.x1.ns):
                assert server(tcp(ns, far, 90)) == "far"
                assert server(udp(ns, far, 90)) == "far"
            assert server(tcp(lab.client, HOST, 8080, source=far)) == "x1"


@pytest.mark.parametrize("separator", ["\x1c", "\x1f", "\x85", "\u2028"])
def test_name_of_an_interface_does_not_end_the_daemon(lab: Small, separator: str) -> None:
    """A container with CAP_NET_ADMIN can make an interface in the namespace of its peer."""
    name = f"a{separator}ext0"
    lab.host.run("ip", "link", "add", name, "type", "bridge")
    try:
        lab.host.run("ip", "link", "set", name, "up")
        lab.host.run("ip", "address", "add", "fd00:e::1/64", "dev", name, "nodad")
        lab.looked()
        lab.daemon.stop()
        lab.daemon.start()
        # A new network is closed.
        network = lab.engine.network("Y", "fd00:b::/64")
        y1 = lab.engine.run("y1", "Y", publish=["8081:80"])
        with serve(y1.ns, "y1", tcp=[80, 81]):
            opened(lab.client, 8081)
            rule = f"! -i {network.bridge} -o {network.bridge} -j DROP"
            assert until(lambda: rule in lab.sandbox.rules(), True)
            assert tcp(lab.sandbox.rogue, str(y1.address), 81, timeout=0.3) is Failure.TIMEOUT
    finally:
        lab.host.run("ip", "link", "delete", name)
        lab.engine.rm("y1")
        lab.engine.docker("network", "rm", "Y", check=False)


class BareDaemon(Daemon):
    """A daemon that starts without ip6tables, until `install`."""

    def __init__(self, sandbox: Sandbox, endpoint: str, *, bus: str) -> None:
        super().__init__(sandbox, endpoint, bus=bus, start=False)
        self.dir = sandbox.dir / "bare"
        self.config = self.dir / "ipv6natd.toml"

    @property
    def _here(self) -> tuple[str, ...]:
        hide = "for t in nft legacy; do mount --bind /dev/null /usr/sbin/xtables-$t-multi; done"
        return (*super()._here, "unshare", "--mount", "sh", "-c", f'{hide}; exec "$@"', "sh")

    def install(self) -> None:
        mounts = inside(self._running().pid)
        for tool in ("nft", "legacy"):
            run("nsenter", *mounts, "umount", f"/usr/sbin/xtables-{tool}-multi")


def test_k4_missing_ip6tables_is_reported_until_it_is_installed(made: Small) -> None:
    if made.daemon.process is not None:
        made.daemon.stop()
    made.daemon.flush()
    with BareDaemon(made.sandbox, made.engine.endpoint, bus=made.bus.address) as daemon:
        daemon.start(wait="degraded")
        assert "install the package iptables" in daemon.status
        assert made.state == "degraded"
        assert "install the package iptables" in made.reason
        assert peer(tcp(made.client, HOST, 8080)) != CLIENT
        daemon.install()
        daemon.wait_state("synced", timeout=35)
        assert made.property("Backend") == made.sandbox.variant
        opened(made.client, 8080)
        # The daemon also detects changes of other programs.
        made.ip6tables("-t", "nat", "-F", "IPV6NAT-DNAT")
        assert until(lambda: dnats(made.sandbox.rules(), 8080) != [], True)
        assert daemon.log.count("ERROR") == 2  # at the start, and at the first try


def test_open_router_between_two_interfaces_is_reported(lab: Small) -> None:
    """Before the tests with ufw and others, whose chains stay after their end."""
    lab.host.ip("link add lan0 type bridge")
    try:
        lab.host.ip("link set lan0 up")
        lab.host.ip("address add 2001:db8:9::1/64 dev lan0 nodad")
        said = lab.looked()
        assert said.startswith("degraded: this host routes IPv6 for everyone between ext0 and lan0")
        lab.ip6tables("-P", "FORWARD", "DROP")
        assert lab.looked() == "synced: "
        opened(lab.client, 8080)
    finally:
        lab.ip6tables("-P", "FORWARD", "ACCEPT")
        lab.host.ip("link del lan0")


# Other firewalls and programs.


FORWARD_CHAIN = """
table inet myfilter {
    chain forward {
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        meta l4proto ipv6-icmp accept
        iifname "lan0" accept
    }
}
"""


def test_dropping_nftables_forward_chain_is_reported_with_the_command(lab: Small) -> None:
    file = lab.sandbox.dir / "nftables.conf"
    file.write_text(FORWARD_CHAIN)
    lab.host.run("nft", "-f", str(file))
    try:
        assert tcp(lab.client, HOST, 8080, timeout=0.3) is Failure.TIMEOUT
        said = lab.looked()
        assert said.startswith("degraded: nft chain forward of table inet myfilter drops packets")
        commands = said[said.index("nft insert") :]
        assert "nft insert rule inet myfilter forward ct status dnat accept" in commands
        lab.host.run("sh", "-c", commands)
        opened(lab.client, 8080)
        assert lab.looked() == "synced: "
    finally:
        lab.host.run("nft", "delete", "table", "inet", "myfilter")


def test_f4_published_ports_stay_open_when_ufw_is_enabled_and_reloaded(lab: Small) -> None:
    need("ufw")
    # ufw uses the machine's `ip6tables`; the tools of the lab select the variant.
    with ufw(lab.sandbox) as command:
        command("--force", "enable")
        assert "ufw6-before-forward" in lab.sandbox.rules()
        assert "-P FORWARD DROP" in lab.ip6tables("-S", "FORWARD")
        opened(lab.client, 8080)
        command("reload")
        opened(lab.client, 8080)
        assert lab.looked() == "synced: "
        command("disable")
        opened(lab.client, 8080)
        lab.ip6tables("-P", "FORWARD", "ACCEPT")


def test_f2_f3_published_ports_stay_open_with_firewalld_and_zones_are_checked(
    made: Small,
) -> None:
    """On another host: firewalld with the nft variant also removes Docker's rules for IPv4."""
    need("firewalld", "firewall-cmd")
    with small(made.sandbox.variant) as lab:
        with firewalld(lab.sandbox, lab.bus) as command:
            assert_zones_checked(lab, command)
            for words in ("--reload", "--complete-reload"):
                command(words)
                assert_port_open(lab)
        assert_port_open(lab)
        with firewalld(lab.sandbox, lab.bus):
            assert_port_open(lab)


def assert_port_open(lab: Small) -> None:
    assert until(lambda: dnats(lab.sandbox.rules(), 8080) != [], True, timeout=2)
    opened(lab.client, 8080)


def assert_zones_checked(lab: Small, command: Any) -> None:
    lab.daemon.start(wait="degraded")
    (row,) = [each for each in listed(lab.daemon, "networks") if each["Name"] == "X"]
    assert any("firewalld has bridge brX in no zone" in each for each in row["Warnings"])
    assert lab.reason.startswith("firewalld has bridge brX in no zone")
    with serve(lab.client, "client", tcp=[7]):
        assert server(tcp(lab.x1.ns, CLIENT, 7, timeout=0.5)) != "client"
        for words in lab.reason[lab.reason.index("firewall-cmd") :].split(" && "):
            command(*words.split()[1:])
        assert server(tcp(lab.x1.ns, CLIENT, 7)) == "client"
    assert lab.looked() == "synced: "
    opened(lab.client, 8080)


def test_f7_rule_that_rejects_everything_is_left_first_after_repeated_inserts(lab: Small) -> None:
    reject = "-A FORWARD -j REJECT --reject-with icmp6-adm-prohibited"
    inserts = 5
    try:
        for number in range(inserts):
            lab.ip6tables("-I", *reject.split()[1:])
            if number < inserts - 1:
                assert until(lambda: first_forward_rule(lab).endswith("-j DOCKER-USER"), True)
        lab.daemon.wait_state("degraded")
        time.sleep(2.5)
        assert first_forward_rule(lab) == reject
        assert until(lambda: f"`{reject}` before" in lab.reason, True)
        # The rules stay in force and follow changes.
        lab.ip6tables("-F", "IPV6NAT-FORWARD")
        assert until(lambda: "-j IPV6NAT-CT" in lab.sandbox.rules(), True)
        assert first_forward_rule(lab) == reject
    finally:
        for _ in range(inserts):
            lab.ip6tables("-D", *reject.split()[1:])
    lab.daemon.wait_state("synced", timeout=5)


def first_forward_rule(lab: Small) -> str:
    return next(line for line in lab.sandbox.rules().splitlines() if line.startswith("-A FORWARD"))


def test_f9_held_xtables_lock_delays_the_write_as_a_whole(
    lab: Small,
) -> None:
    if lab.sandbox.variant != "legacy":
        pytest.skip("nf_tables has no lock: its transactions are the kernel's")
    before = lab.sandbox.rules()
    with lock_of_its_own(lab.daemon) as file:
        with file.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = lab.engine.run("x2", "X", publish=["8081:80"])
            for _ in range(20):
                time.sleep(0.5)
                assert lab.sandbox.rules() == before
            assert lab.state == "synced"
        try:
            assert until(lambda: dnats(lab.sandbox.rules(), 8081) != [], True)
            with serve(made.ns, "x2", tcp=[80]):
                opened(lab.client, 8081)
            assert lab.state == "synced"
        finally:
            lab.engine.rm("x2")
            until(lambda: dnats(lab.sandbox.rules(), 8081), [])


@contextmanager
def lock_of_its_own(daemon: Daemon) -> Iterator[Path]:
    """Run the daemon with another file than /run/xtables.lock, which the tests beside need."""
    file = daemon.dir / "xtables.lock"
    daemon.env["XTABLES_LOCKFILE"] = str(file)
    try:
        daemon.stop()
        daemon.start()
        yield file
    finally:
        del daemon.env["XTABLES_LOCKFILE"]
        daemon.stop()
        daemon.start()


class InvalidRestoreDaemon(Daemon):
    """A daemon whose restore of the nat table has a chain loop at its end, while `spoil` exists.

    The tool accepts the loop; the kernel rejects it after it received all other changes.
    """

    def __init__(self, sandbox: Sandbox, endpoint: str, *, bus: str) -> None:
        super().__init__(sandbox, endpoint, bus=bus, start=False)
        self.dir = sandbox.dir / "spoilt"
        self.config = self.dir / "ipv6natd.toml"
        self.spoil = self.dir / "spoil"

    @property
    def _here(self) -> tuple[str, ...]:
        tool, real, wrapper = "/usr/sbin/xtables-nft-multi", self.dir / "real", self.dir / "wrapper"
        real.write_bytes(Path(tool).read_bytes())
        wrapper.write_text(
            "#!/bin/sh\n"
            "circle='-A IPV6NAT-DNAT -j IPV6NAT-DNAT'\n"
            f"if [ -e {self.spoil} ] && [ ${{0%-restore}} != $0 ]; then\n"
            f'    sed "/^.nat/,/^COMMIT/ s/^COMMIT/$circle\\nCOMMIT/" | {real} ${{0##*/}} "$@"\n'
            f'else\n    exec {real} ${{0##*/}} "$@"\nfi\n'
        )
        for file in (real, wrapper):
            file.chmod(0o755)
        put = f'mount --bind {wrapper} {tool}; exec "$@"'
        return (*super()._here, "unshare", "--mount", "sh", "-c", put, "sh")


def test_f10_failed_restore_changes_nothing_and_is_reported(made: Small) -> None:
    if made.sandbox.variant != "nft":
        pytest.skip("on legacy such a change is made in the daemon's own process")
    if made.daemon.process is not None:
        made.daemon.stop()
    with InvalidRestoreDaemon(made.sandbox, made.engine.endpoint, bus=made.bus.address) as daemon:
        daemon.start()
        opened(made.client, 8080)
        before = made.sandbox.rules()
        daemon.spoil.touch()
        x2 = made.engine.run("x2", "X", publish=["8081:80"])
        try:
            said = daemon.wait_state("degraded")
            assert "ip6tables-nft-restore --noflush --wait refused" in said
            assert made.sandbox.rules() == before
            opened(made.client, 8080)
            daemon.spoil.unlink()
            daemon.wait_state("synced")
            with serve(x2.ns, "x2", tcp=[80]):
                opened(made.client, 8081)
        finally:
            made.engine.rm("x2")
            assert until(made.sandbox.rules, before) == before


def test_f11_own_rules_in_the_other_variant_are_reported_and_flushed(lab: Small) -> None:
    other: Variant = "legacy" if lab.sandbox.variant == "nft" else "nft"
    lab.host.run(f"ip6tables-{other}", "-N", "IPV6NAT-FORWARD")
    said = lab.looked()
    assert said.startswith(f"degraded: stale rules of ipv6natd are in the {other} variant")
    assert said.endswith("ipv6natd -flush")
    lab.daemon.flush()
    assert "IPV6NAT" not in lab.sandbox.rules(other)
    opened(lab.client, 8080)


def test_ipv4_rules_of_the_engine_in_the_other_variant_are_reported(lab: Small) -> None:
    variant, other = lab.sandbox.variant, "legacy"
    if variant == "legacy":
        other = "nft"
    for chain in ("PREROUTING", "OUTPUT"):
        saved = lab.host.run(f"iptables-{variant}", "-t", "nat", "-S", chain)
        assert "-j DOCKER" in saved
    lab.host.run(f"iptables-{variant}", "-t", "nat", "-E", "DOCKER", "AWAY")
    lab.host.run(f"iptables-{other}", "-t", "nat", "-N", "DOCKER")
    try:
        said = lab.looked()
        assert said.startswith(f"degraded: Docker writes its IPv4 rules with iptables-{other}")
        assert f'backend = "{other}"' in said
    finally:
        lab.host.run(f"iptables-{other}", "-t", "nat", "-X", "DOCKER")
        lab.host.run(f"iptables-{variant}", "-t", "nat", "-E", "AWAY", "DOCKER")


def test_running_docker_ipv6nat_is_reported_with_the_command(lab: Small) -> None:
    """Q9: with all capabilities, and with those of the unit."""
    tool = lab.sandbox.dir / "docker-ipv6nat"
    tool.write_bytes(Path("/usr/bin/sleep").resolve().read_bytes())
    tool.chmod(0o755)
    with (lab.sandbox.dir / "rival").open("wb") as log:
        rival = spawn(["nsenter", f"--net={lab.host.path}", str(tool), "infinity"], log=log)
    try:
        until(lambda: Path(f"/proc/{rival.pid}/comm").read_text(), "docker-ipv6nat\n")
        said = lab.looked()
        assert said.startswith("degraded: docker-ipv6nat runs")
        assert said.endswith(f"kill {rival.pid}")
        find = "from ipv6natd.host.facts import docker_ipv6nat; print(docker_ipv6nat())"
        bounds = "--bounding-set=-all,+net_admin,+net_raw"
        found = lab.host.run("setpriv", bounds, "--inh-caps=-all", sys.executable, "-c", find)
        assert found.strip() == f"kill {rival.pid}"
    finally:
        end(rival)
    assert lab.looked() == "synced: "


def test_neighbours_without_icc_are_blocked_when_bridges_bypass_ip6tables(lab: Small) -> None:
    """I6: the setting of this bridge changes, and the setting of the host does not."""
    setting = "net.bridge.bridge-nf-call-ip6tables"
    option = {"com.docker.network.bridge.enable_icc": "false"}
    lab.engine.network("Z", "fd00:f::/64", options=option)
    z1, z2 = (lab.engine.run(name, "Z") for name in ("z1", "z2"))
    try:
        lab.host.sysctl(setting, 0)
        lab.host.ip("link set brZ type bridge nf_call_ip6tables 0")
        with serve(z1.ns, "z1", tcp=[80]):
            assert z1.address is not None
            assert server(tcp(z2.ns, z1.address, 80)) == "z1"
            lab.looked()
            assert tcp(z2.ns, z1.address, 80, timeout=0.3) is Failure.TIMEOUT
        assert lab.host.sysctl(setting) == "0"
        assert lab.state == "synced"
    finally:
        lab.host.sysctl(setting, 1)
        lab.engine.rm("z1", "z2")
        lab.engine.docker("network", "rm", "Z")
        until(lambda: "brZ" in lab.sandbox.rules(), False)


@pytest.mark.parametrize(
    "way",
    ["ip -6 address flush dev brX scope global", "sysctl -w net.ipv6.conf.brX.disable_ipv6=1"],
    ids=["flushed", "disabled"],
)
def test_bridge_that_lost_its_address_is_reported_with_the_command(lab: Small, way: str) -> None:
    """Q16. The command that is shown opens the port again."""
    lab.host.run(*way.split())
    try:
        shown = lab.looked()
        assert shown.startswith("degraded: bridge brX has lost its IPv6 address")
        assert isinstance(tcp(lab.client, HOST, 8080, timeout=0.3), Failure)
    finally:
        command = "sysctl -w net/ipv6/conf/brX/disable_ipv6=0 && ip address replace fd00:a::1/64"
        lab.host.run("sh", "-c", f"{command} dev brX nodad")
    assert command in shown
    assert lab.looked() == "synced: "
    opened(lab.client, 8080)


@pytest.mark.parametrize(
    "args",
    [(), ("--gateway=fd00:9::ff",), ("--ip-range=fd00:9::100/120",)],
    ids=["first", "gateway", "range"],
)
def test_q16_printed_command_gives_the_bridge_its_own_address_again(
    lab: Small, args: tuple[str, ...]
) -> None:
    """Run as it is printed: the first address can be that of a container."""
    lab.engine.network("G", "fd00:9::/64", *args)
    g1, g2 = (lab.engine.run(n, "G", publish=[f"{p}:80"]) for n, p in (("g1", 81), ("g2", 82)))
    show = "-6 -oneline address show dev brG scope global"
    try:
        with serve(g1.ns, "g1", tcp=[80]), serve(g2.ns, "g2", tcp=[80]):
            opened(lab.client, 81)
            before = lab.host.ip(show).split()[:4]
            lab.host.ip("-6 address flush dev brG scope global")
            shown = lab.looked()
            assert shown.startswith("degraded: bridge brG has lost its IPv6 address")
            lab.host.run("sh", "-c", shown[shown.index("sysctl -w") :])
            assert lab.host.ip(show).split()[:4] == before
            assert lab.looked() == "synced: "
            opened(lab.client, 81)
            opened(lab.client, 82)
    finally:
        lab.engine.rm("g1", "g2")
        lab.engine.docker("network", "rm", "G")
        until(lambda: "brG" in lab.sandbox.rules(), False)


def test_q2_note_about_a_ban_list_ends_when_its_command_was_run(lab: Small) -> None:
    """A second list cuts off every client, so no command adds it to DOCKER-USER."""
    rules = (("BANS", "-s", str(CLIENT)), ("UPLINK", "-i", "ext0"))
    for name, *match in rules:
        lab.ip6tables("-N", name)
        lab.ip6tables("-A", name, *match, "-j", "DROP")
        lab.ip6tables("-A", "FORWARD", "-j", name)
    try:
        assert lab.looked() == "synced: "
        opened(lab.client, 8080)
        bans, uplink = (said(lab, name) for name, *_ in rules)
        assert "ip6tables" not in uplink
        command = bans.partition(": ip6tables ")[2]
        lab.ip6tables(*command.split())
        assert tcp(lab.client, HOST, 8080, timeout=0.3) is Failure.TIMEOUT
        assert said(lab, "BANS") == ""
        assert said(lab, "UPLINK") == uplink
    finally:
        lab.ip6tables("-D", "DOCKER-USER", "-j", "BANS")
        for name, *_ in rules:
            lab.ip6tables("-D", "FORWARD", "-j", name)
            lab.ip6tables("-F", name)
            lab.ip6tables("-X", name)


def said(lab: Small, chain: str) -> str:
    """The line of `ipv6natctl check` about the jump to a chain."""
    lines = lab.daemon.ctl("check", check=False).splitlines()
    return next((line for line in lines if f"-j {chain}`" in line), "")


def test_strict_reverse_path_filter_is_noted_in_the_journal(lab: Small) -> None:
    rule = ("PREROUTING", "-m", "rpfilter", "--invert", "-j", "DROP")
    lab.ip6tables("-t", "raw", "-A", *rule)
    try:
        assert lab.looked() == "synced: "
        assert "a reverse-path filter is in the raw table of ip6tables" in lab.daemon.log
        opened(lab.client, 8080)
    finally:
        lab.ip6tables("-t", "raw", "-D", *rule)
