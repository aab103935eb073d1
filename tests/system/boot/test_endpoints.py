"""Engines behind another socket, with the drop-ins of the examples."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests import harness
from tests.harness.tls import Authority
from tests.system.boot.host import Host

pytestmark = pytest.mark.slow

DROP_INS = "/etc/systemd/system/ipv6natd.service.d"
TLS = "/etc/ipv6natd/tls"
ADDRESS = "tcp://127.0.0.1:2376"
ROOTLESS = """
    set -e
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install rootlesskit slirp4netns uidmap
    useradd --create-home --uid=1000 plain
    chmod 666 /dev/net/tun                   # as on any machine; a container's has another mode
    cat >/run/systemd/system/rootless.service <<END
[Unit]
# What a login has; it goes when nothing needs it.
Requires=user-runtime-dir@1000.service
After=user-runtime-dir@1000.service
[Service]
User=plain
Delegate=yes
Environment=XDG_RUNTIME_DIR=/run/user/1000 DOCKERD_ROOTLESS_ROOTLESSKIT_NET=slirp4netns
ExecStart=/usr/share/docker.io/contrib/dockerd-rootless.sh --storage-driver=vfs --iptables=false
END
    systemctl daemon-reload
    systemctl start rootless
"""


@contextmanager
def over_tls(host: Host) -> Iterator[None]:
    """The engine also listens on tcp://, and root has a client certificate for it."""
    made = Authority(host.shared / "authority").signed("engine")
    flags = "--tlsverify " + " ".join(
        f"--tls{flag}=/lab/authority/{made.name}/{name}.pem"
        for flag, name in (("cacert", "ca"), ("cert", "cert"), ("key", "key"))
    )
    host.sh(f"""
        mkdir -p ~/.docker && cp /lab/authority/{made.name}/*.pem ~/.docker
        echo 'DOCKER_OPTS="-H {ADDRESS} {flags}"' >/etc/default/docker
        systemctl reset-failed docker; systemctl restart docker
    """)
    try:
        yield
    finally:
        # The start limit of the unit permits fewer starts in a minute.
        host.sh("rm -r /etc/default/docker ~/.docker")
        host.sh("systemctl reset-failed docker; systemctl restart docker")


def test_tcp_engine_is_followed_with_the_drop_in(host: Host) -> None:
    with over_tls(host):
        host.follow("tcp-endpoint.conf")
        try:
            host.await_state('s "synced"')
            host.run("ip6tables", "-t", "nat", "-F")
            host.start("late", "--publish=8081:80")
            host.await_served(8081)
            host.await_served()
            # Without IPAddressAllow= the service cannot reach the address.
            host.sh(f"sed -i '/^IPAddressAllow=/d' {DROP_INS}/tcp-endpoint.conf")
            host.sh("systemctl daemon-reload; systemctl restart ipv6natd")
            host.await_state('s "waiting-for-docker"')
        finally:
            host.sh("docker rm --force late")
            host.without(DROP_INS, TLS)
    host.await_served()


def test_rootless_engine_with_the_drop_in_is_reached_and_reported_as_skipped(
    host: Host,
) -> None:
    host.follow("rootless-endpoint.conf")
    try:
        host.await_state('s "waiting-for-docker"')
        # The user's folder is mounted after the start of the service.
        host.sh(ROOTLESS)
        said = harness.until(
            lambda: host.run("ipv6natctl", "skipped", check=False),
            lambda text: "the engine is rootless" in text,
            timeout=30,
        )
        assert "the engine is rootless" in said, host.journal(unit="rootless")
        assert host.state("DockerConnected") == "b true"
        table = host.run("systemd-analyze", "security", "--no-pager", "ipv6natd")
        assert "Overall exposure level for ipv6natd.service: 2.0 OK" in table
    finally:
        host.sh("systemctl stop rootless; rm -f /run/systemd/system/rootless.service")
        host.without(DROP_INS)
    host.await_served()
