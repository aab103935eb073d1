"""A host on which the package was installed as described in README."""

from __future__ import annotations

import json
import re
import socket
import struct
from contextlib import suppress

import pytest

from tests import harness
from tests.harness.namespace import Namespace
from tests.harness.process import LabError
from tests.harness.sandbox import CLIENT
from tests.system.boot.host import FORWARDING, MANAGER, PORT, WEB, Host


def test_installed_service_is_active_and_enabled(host: Host) -> None:
    assert host.run("systemctl", "is-active", "ipv6natd").strip() == "active"
    assert host.run("systemctl", "is-enabled", "ipv6natd").strip() == "enabled"


def test_service_enables_forwarding_in_its_sandbox_and_logs_it(host: Host) -> None:
    host.await_state('s "synced"')
    assert host.sandbox.host.sysctl(FORWARDING) == "1"
    assert f"{FORWARDING} was 0 and is 1 now: " in host.journal()
    found = host.run("find", "/usr/lib/sysctl.d", "/etc/sysctl.d", "-name", "*ipv6natd*")
    assert found == ""


def test_default_route_by_advertisement_survives_forwarding(host: Host) -> None:
    ns = host.sandbox.host
    # The engine may have enabled forwarding. Here the service must enable it.
    ns.sysctl(FORWARDING, 0)
    host.restart()
    host.run("ipv6natctl", "cleanup")
    assert ns.sysctl(FORWARDING) == "0"
    advertised(ns, "uplink", "router")
    # accept_ra=0 is a decision of the administrator, whatever the source of the route is.
    ns.sysctl("net/ipv6/conf/router/accept_ra", 0)
    ns.ip("-6 route add default dev router metric 2048 proto ra")
    host.run("ipv6natctl", "resync")
    assert ns.sysctl(FORWARDING) == "1"
    assert "dev uplink proto ra" in ns.ip("-6 route show default")
    assert ns.sysctl("net/ipv6/conf/uplink/accept_ra") == "2"
    assert ns.sysctl("net/ipv6/conf/router/accept_ra") == "0"
    said = re.findall(
        r"^net\.ipv6\.conf\.(\S+ was \d and is \d) now: ", host.journal(), re.MULTILINE
    )
    assert said[-2:] == ["uplink.accept_ra was 1 and is 2", "all.forwarding was 0 and is 1"]
    # Forwarding is restored first, and the route stays.
    host.run("ipv6natctl", "cleanup")
    said = re.findall(
        r"^net\.ipv6\.conf\.(\S+ was \d and is \d) again", host.journal(), re.MULTILINE
    )
    assert said[-2:] == ["all.forwarding was 1 and is 0", "uplink.accept_ra was 2 and is 1"]
    assert "dev uplink proto ra" in ns.ip("-6 route show default")
    ns.ip("link delete uplink")
    host.run("ipv6natctl", "resync")
    host.await_state('s "synced"')


def advertised(ns: Namespace, link: str, router: str) -> None:
    """A link with a default route by advertisement, on a host without forwarding."""
    assert ns.sysctl(FORWARDING) == "0"
    ns.ip(f"link add {link} type veth peer name {router}")
    for each in (link, router):
        ns.sysctl(f"net/ipv6/conf/{each}/accept_dad", 0)
        ns.ip(f"link set {each} up")
    index = ns.within(lambda: socket.if_nametoindex(router))
    with ns.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
        # The kernel accepts advertisements only with hop limit 255.
        raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
        lifetime = 1800
        advertisement = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, lifetime, 0, 0)

        def routes() -> str:
            with suppress(OSError):  # as long as the link is not up
                raw.sendto(advertisement, ("ff02::1", 0, 0, index))
            return ns.ip("-6 route show default")

        found = harness.until(
            routes, lambda said: f"dev {link} proto ra" in said, pause=0.1, timeout=10
        )
    assert f"dev {link} proto ra" in found


def test_container_from_before_the_installation_sees_the_client(host: Host) -> None:
    host.await_served()


def test_explain_reaches_the_server_in_the_container(host: Host) -> None:
    """The sandbox of the service does not permit a connection: the tool connects."""
    for run in (host.run, host.as_nobody):
        (row,) = json.loads(run("ipv6natctl", "explain", "8080", "--json=short"))
        assert [port["Server"] for port in row["Ports"]] == ["accepted"]


def test_service_follows_a_packet_through_the_rules_in_its_sandbox(host: Host) -> None:
    """Its tools read the tables, the routes and the chains of nft there."""
    words = ("ipv6natctl", "explain", "8080", "--from", str(CLIENT), "--json=short")
    (row,) = json.loads(host.run(*words))
    assert (row["Fate"], row["Interface"]) == ("forwarded", "ext0")
    assert "ipv6natd" in {step["By"] for step in row["Steps"]}


def test_new_container_sees_the_client(host: Host) -> None:
    host.start("late", "--publish=8081:80")
    host.await_served(8081)
    host.run("docker", "rm", "--force", "late")


def test_busctl_shows_members_and_object_tree(host: Host) -> None:
    shown = host.as_nobody("busctl", "introspect", *MANAGER)
    for member in ("ListMappings", "Resync", "StateReason", "Synced"):
        assert re.search(rf"^\.{member}\s", shown, re.MULTILINE), shown
    assert "/org/ipv6natd1" in host.as_nobody("busctl", "tree", MANAGER[0])


def test_busctl_calls_resync_and_reads_properties(host: Host) -> None:
    before = int(host.state("Generation").split()[1])
    assert '"Generation" t' in host.run("busctl", "call", *MANAGER, "Resync")
    assert int(host.state("Generation").split()[1]) >= before
    assert host.state() == 's "synced"'
    assert host.state("MappingCount") == "u 1"


def test_plain_user_reads_and_cannot_resync(host: Host) -> None:
    assert f'"ContainerAddress" s "{WEB}"' in host.as_nobody(
        "busctl", "call", *MANAGER, "ListMappings"
    )
    assert str(PORT) in host.as_nobody("ipv6natctl", "mappings")
    refused = host.as_nobody("busctl", "call", *MANAGER, "Resync")
    assert refused.startswith("Call failed: "), refused
    assert "Generation" not in refused


def test_systemctl_status_shows_the_state(host: Host) -> None:
    shown = host.run("systemctl", "status", "--no-pager", "ipv6natd")
    assert 'Status: "synced: 1 mapping, 1 network, ' in shown


def test_reload_returns_after_the_new_settings_are_in_force(host: Host) -> None:
    assert host.state("NetworkCount") == "u 1"
    folder = "/etc/ipv6natd/conf.d"
    host.sh(f"echo 'nat_prefixes = [\"fd00:b::/64\"]' >{folder}/lab.toml")
    host.run("systemctl", "reload", "ipv6natd")
    assert host.state("NetworkCount") == "u 0"
    host.sh(f"rm {folder}/lab.toml; systemctl reload ipv6natd")
    assert host.state("NetworkCount") == "u 1"
    assert host.show("NRestarts") == "0"


def test_reload_of_a_bad_file_fails_and_changes_nothing(host: Host) -> None:
    process = host.show("MainPID")
    host.sh("echo 'bakcend = 1' >/etc/ipv6natd/conf.d/lab.toml")
    try:
        with pytest.raises(LabError):
            host.run("systemctl", "reload", "ipv6natd")
        shown = host.run("systemctl", "status", "--no-pager", "--lines=20", "ipv6natd")
        assert "unknown key 'bakcend'; did you mean 'backend'?" in shown
        assert (host.show("MainPID"), host.show("ActiveState")) == (process, "active")
        host.await_served()
    finally:
        host.sh("rm /etc/ipv6natd/conf.d/lab.toml; systemctl reload ipv6natd")
    assert host.state() == 's "synced"'


def test_restart_under_load_loses_no_connection(host: Host) -> None:
    host.await_served()
    with (
        harness.serve(host.container("web"), "held", tcp=[81]),
        harness.connect(host.sandbox.host, WEB, 81) as through,
        host.load() as end,
    ):
        host.run("systemctl", "restart", "ipv6natd")
        host.await_state('s "synced"')
        assert isinstance(through.ask(), harness.Answer)
    seen = end()
    assert set(seen) == {CLIENT}
    assert len(seen) > 20


def test_exposure_level_of_the_sandbox_is_1_7(host: Host) -> None:
    table = host.run("systemd-analyze", "security", "--no-pager", "--threshold=17", "ipv6natd")
    assert "Overall exposure level for ipv6natd.service: 1.7 OK" in table


def test_only_root_can_write_files_of_package_and_service(host: Host) -> None:
    listed = "dpkg -L ipv6natd; find /var/lib/ipv6natd /etc/ipv6natd"
    wrong = "-perm /7022 ! -type l -o ! -user root -o ! -group root"
    assert host.sh(f"({listed}) | xargs -I@ find @ -maxdepth 0 '(' {wrong} ')' -ls") == ""
    modes = host.run("stat", "--format=%a", "/var/lib/ipv6natd", "/var/lib/ipv6natd/filter.rules")
    assert modes.split() == ["700", "600"]
    assert host.run("stat", "--format=%a", "/etc/ipv6natd/ipv6natd.toml").strip() == "644"


def test_unknown_configuration_key_exits_78_with_message(host: Host) -> None:
    try:
        host.sh("echo 'bakcend = 1' >/etc/ipv6natd/conf.d/lab.toml")
        host.run("systemctl", "restart", "ipv6natd", check=False)
        assert host.run("systemctl", "is-active", "ipv6natd", check=False).strip() == "failed"
        assert host.show("ExecMainStatus") == "78"
        said = "/etc/ipv6natd/conf.d/lab.toml: unknown key 'bakcend'; did you mean 'backend'?"
        assert said in host.journal()
        # The service does not restart, and the open port stays open.
        assert host.fetch() == CLIENT
    finally:
        host.sh("rm /etc/ipv6natd/conf.d/lab.toml")
        host.restart()
