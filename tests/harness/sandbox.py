"""The network: a host, a client and a rogue on one Ethernet link.

    wire (a bridge) --- host:ext0    2001:db8:1::1, 2001:db8:1::10, 192.0.2.1, 192.0.2.10
                    --- client:ext0  2001:db8:1::2, 192.0.2.2
                    --- rogue:ext0   2001:db8:1::3, 192.0.2.3, everything else by way of the host

The client has no route beyond its link. The rogue routes all packets by way of the host.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from tests.harness.namespace import Namespace
from tests.harness.process import LAB, run, undisturbed

Variant = Literal["nft", "legacy"]

HOST = IPv6Address("2001:db8:1::1")
HOST_TOO = IPv6Address("2001:db8:1::10")
CLIENT = IPv6Address("2001:db8:1::2")
ROGUE = IPv6Address("2001:db8:1::3")
HOST4 = IPv4Address("192.0.2.1")
CLIENT4 = IPv4Address("192.0.2.2")
HOST_LINK_LOCAL = IPv6Address("fe80::ff:fe00:1%ext0")
"""The host's link-local address, with the scope of the client and the rogue."""

# Of several equal addresses the kernel prefers the last one added as the source: ::1.
PEERS = {
    "host": (1, ("2001:db8:1::10/64", "2001:db8:1::1/64", "192.0.2.1/24", "192.0.2.10/24")),
    "client": (2, ("2001:db8:1::2/64", "192.0.2.2/24")),
    "rogue": (3, ("2001:db8:1::3/64", "192.0.2.3/24")),
}

SERIAL = itertools.count(1)


class Sandbox:
    """The namespaces, a folder, and the host's variant of iptables.

    `iptables` and `ip6tables` are this variant on the host, for the engine and for ipv6natd.
    """

    host: Namespace
    client: Namespace
    rogue: Namespace
    wire: Namespace
    dir: Path

    def __init__(self, variant: Variant = "nft") -> None:
        self.variant = variant
        self.name = f"{LAB}-{next(SERIAL)}"
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        sweep()
        with ExitStack() as stack:
            self.dir = stack.enter_context(folder(self.name))
            self.wire, self.host, self.client, self.rogue = (
                stack.enter_context(namespace(self.name, role))
                for role in ("wire", "host", "client", "rogue")
            )
            self._connect()
            self._tools()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with undisturbed():
            self._stack.close()

    @property
    def path(self) -> str:
        """A PATH with the tools of the variant."""
        return f"{self.dir}/tools:/usr/sbin:/usr/bin:/sbin:/bin"

    def rules(self, variant: Variant | None = None) -> str:
        """The output of ip6tables-save on the host, without counters and dates."""
        text = self.host.run(f"ip6tables-{variant or self.variant}-save")
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        return "".join(re.sub(r"\s*\[\d+:\d+\]", "", line) + "\n" for line in lines)

    def _connect(self) -> None:
        for space in (self.wire, self.host, self.client, self.rogue):
            # During duplicate address detection a link-local address does not answer for 1 to 2 s.
            # The same holds for the bridges of the engine.
            for scope in ("all", "default"):
                space.sysctl(f"net.ipv6.conf.{scope}.accept_dad", 0)
            space.ip("link set lo up")
        # The wire is a switch. With bridge-nf-call, conntrack would see its frames twice.
        for family in ("ip", "ip6", "arp"):
            with suppress(FileNotFoundError):
                self.wire.sysctl(f"net.bridge.bridge-nf-call-{family}tables", 0)
        self.wire.ip("link add wire0 type bridge")
        self.wire.ip("link set wire0 up")
        for role, (number, addresses) in PEERS.items():
            peer: Namespace = getattr(self, role)
            self.wire.ip(
                f"link add {role} type veth peer name ext0 address 02:00:00:00:00:0{number}"
                f" netns {peer.path.name}"
            )
            self.wire.ip(f"link set {role} master wire0 up")
            peer.ip("link set ext0 up")
            for address in addresses:
                peer.ip(f"address add {address} dev ext0" + " nodad" * (":" in address))
        self.host.sysctl("net.ipv6.conf.all.forwarding", 1)
        self.rogue.ip(f"route add default via {HOST} dev ext0")
        self.rogue.ip(f"route add fd00::/8 via {HOST} dev ext0")

    def _tools(self) -> None:
        tools = self.dir / "tools"
        tools.mkdir()
        for family in ("iptables", "ip6tables"):
            for verb in ("", "-save", "-restore"):
                target = shutil.which(f"{family}-{self.variant}{verb}", path="/usr/sbin:/sbin")
                (tools / f"{family}{verb}").symlink_to(target or "/nonexistent")


@contextmanager
def namespace(lab: str, role: str) -> Iterator[Namespace]:
    """A named network namespace, until the end of the context."""
    name = f"{lab}-{role}"
    path = Path("/run/netns") / name
    try:
        with undisturbed():
            run("ip", "netns", "add", name)
        yield Namespace(name=role, path=path)
    finally:
        with undisturbed():
            if path.exists():
                run("ip", "netns", "delete", name)


@contextmanager
def folder(lab: str) -> Iterator[Path]:
    """A folder for logs, sockets and state. Its name is short because of the sockets."""
    path = Path(tempfile.mkdtemp(prefix=f"{lab}-"))
    try:
        yield path
    finally:
        with undisturbed():
            shutil.rmtree(path)


def sweep() -> None:
    """Remove the resources of labs whose process was killed."""
    folders, cgroups = Path(tempfile.gettempdir()), Path("/sys/fs/cgroup")
    for path in orphans(Path("/run/netns")):
        run("ip", "netns", "delete", path.name, check=False)
    for path in orphans(folders):
        shutil.rmtree(path, ignore_errors=True)
    for place in (cgroups, *cgroups.glob("*/")):
        for path in orphans(place):
            for group, _, _ in os.walk(path, topdown=False):
                with suppress(OSError):
                    Path(group).rmdir()


def orphans(place: Path) -> list[Path]:
    """Paths with the name of a lab whose process has ended."""
    found = []
    for path in place.glob("v6n*-*"):
        owner = re.match(r"v6n(\d+)-", path.name)
        if owner is not None and not Path("/proc", owner[1]).exists():
            found.append(path)
    return found
