"""The real lab that a `World` describes: engine, bus, daemon, containers and servers.

Nothing here decides the expected results. The lab performs steps, and reports the engine's choices.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from tests.harness import Bus, Daemon, Engine, Namespace, Sandbox, Server, serve, until
from tests.harness.process import LabError
from tests.harness.sandbox import Variant
from tests.stress.soak.model import LATE, LISTENS, OUTSIDE, Box, Mode, Net, Publish, World

OPTION = "com.docker.network.bridge."
STATES = {"running": "running", "paused": "paused", "exited": "stopped", "created": "stopped"}
BURIED = 3.0
"""Seconds within which the kernel removes the links of an ended namespace."""
PATIENCE = 30.0
"""Seconds within which the engine must reach the requested state."""


@dataclass(slots=True)
class Served:
    """The server in a container's current namespace."""

    pid: int
    ns: Namespace
    server: Server
    stack: ExitStack
    ends: frozenset[IPv6Address] = frozenset()
    """The container's addresses at the last flush of neighbour entries."""
    routed: frozenset[IPv6Address] = frozenset()
    """The container's addresses that have a local route."""


@dataclass(slots=True, kw_only=True)
class Ground:
    """One lab; `wrong` collects the wrong results during steps."""

    sandbox: Sandbox
    engine: Engine
    bus: Bus
    daemon: Daemon
    wrong: list[str] = field(default_factory=list)
    restarted: set[str] = field(default_factory=set)
    """Containers with another process than at the last inspect."""
    left_behind: int = 0
    """Links of removed containers, with addresses, that the engine left."""
    unrouted: int = 0
    """Addresses of started containers without a local route in the container."""
    _served: dict[str, Served] = field(default_factory=dict)

    def spaces(self, world: World) -> dict[str, Namespace]:
        """The namespace of each client."""
        fixed = {n: getattr(self.sandbox, n) for n in ("client", "rogue", "host")}
        return fixed | {name: self._served[name].ns for name in world.boxes if name in self._served}

    def server(self, name: str) -> Server | None:
        served = self._served.get(name)
        return None if served is None else served.server

    # Requests to the engine

    def create(self, net: Net) -> None:
        options: dict[str, str] = {}
        if net.mode is not Mode.NAT:
            options[f"{OPTION}gateway_mode_ipv6"] = net.mode
        if not net.icc:
            options[f"{OPTION}enable_icc"] = "false"
        if not net.masquerade:
            options[f"{OPTION}enable_ip_masquerade"] = "false"
        if net.binding:
            options[f"{OPTION}host_binding_ipv6"] = str(net.binding)
        if net.source:
            options["com.docker.network.host_ipv6"] = str(net.source)
        if net.trusted:
            options[f"{OPTION}trusted_host_interfaces"] = "ext0"
        words = ["--internal"] if net.internal else []
        self.engine.network(net.name, net.subnet, *words, bridge=net.bridge, options=options)

    def run(self, box: Box) -> None:
        (network, address), *_ = box.ends.items()
        words = ["--restart=always"] if box.always else []
        ip6 = str(address) if address and network in box.fixed else None
        publish = [each.words() for each in box.publish]
        self.engine.run(box.name, network, *words, publish=publish, ip6=ip6)

    def connect(self, name: str, network: str, address: IPv6Address | None) -> None:
        words = ["--ip6", str(address)] if address else []
        self.engine.docker("network", "connect", *words, network, name)

    def late(self, there: bool) -> None:
        """Add the late address to the host, or remove it."""
        verb = "add" if there else "del"
        words = " nodad preferred_lft 0" if there else ""
        self.sandbox.host.ip(f"address {verb} {LATE}/64 dev ext0{words}")

    def ip6tables(self, *words: str) -> str:
        return self.sandbox.host.run(f"ip6tables-{self.sandbox.variant}", *words)

    def rename(self, old: str, new: str) -> None:
        self.engine.docker("rename", old, new)
        served = self._served.pop(old)
        served.server.name = new
        self._served[new] = served

    def same_rules(self, what: str, before: str) -> None:
        """Check that a new daemon writes the same rules as the one before, byte for byte."""
        after = until(self.sandbox.rules, before, timeout=PATIENCE)
        if after != before:
            gone = sorted(set(before.splitlines()) - set(after.splitlines()))
            more = sorted(set(after.splitlines()) - set(before.splitlines()))
            self.wrong.append(f"{what}: rules differ; gone {gone}, more {more}")

    def settled_rules(self) -> str:
        """The tables after a resync."""
        done = "rules added"
        until(lambda: done in self.daemon.ctl("resync", check=False), True, timeout=PATIENCE)
        return self.sandbox.rules()

    def await_networks(self, world: World) -> None:
        """Wait until the rules have exactly these networks, which are closed then."""
        wanted = {net.bridge for net in world.nets.values()}

        def bridges() -> set[str]:
            return set(re.findall(r" -[io] (br\w+)", self.sandbox.rules()))

        if (seen := until(bridges, wanted, timeout=PATIENCE)) != wanted:
            self.wrong.append(f"there are rules for {sorted(seen)}, and not for {sorted(wanted)}")
        self.settled_rules()  # after both tables and the conntrack entries

    # Answers of the engine

    def learn(self, world: World) -> World:
        """The world with the engine's choices. Each running container gets a server."""
        deadline = time.monotonic() + PATIENCE
        while True:
            facts = self._inspect(world)
            states, wanted = states_of(facts), {n: box.state for n, box in world.boxes.items()}
            if states == wanted:
                break
            if time.monotonic() > deadline:
                why = self._why(states)
                raise LabError(f"docker has {states} instead of {wanted}: {why}")
            time.sleep(0.05)
        for name in [n for n in self._served if n not in world.boxes or not world.boxes[n].up]:
            self._served.pop(name).stack.close()
        world = world.having(*(learned(world.boxes[name], each) for name, each in facts.items()))
        up = [name for name, box in world.boxes.items() if box.up]
        for name in up:
            self._serve(name, facts[name]["State"]["Pid"])
            self._check_routes(world.boxes[name])
        came = [name for name in up if self._moved(world.boxes[name])]
        if came:
            self._look_anew(world, came)
        return world

    def _look_anew(self, world: World, came: list[str]) -> None:
        """Flush the neighbour entries for these containers, except those that ipv6natd must flush.

        An engine before 28 may reuse an address with another MAC, without an announcement.
        """
        # The former container may answer for its address until the kernel has removed its link.
        for link in until(self._astray_links, [], timeout=BURIED):
            self.left_behind += 1
            self.sandbox.host.ip(f"link delete {link}")
        for box in (world.boxes[name] for name in came):
            led = world.gateway(box) if any(each.ipv6 for each in box.publish) else None
            for name, address in box.ends.items():
                if address is None:
                    continue
                # Only this address: packets that wait for another neighbour would be lost.
                for served in self._served.values():
                    served.ns.ip(f"-6 neigh flush to {address}")
                if led is None or name != led.name:
                    self.sandbox.host.ip(f"-6 neigh flush to {address}")

    def astray(self, world: World) -> set[str]:
        """Containers whose state is not the expected one."""
        states = states_of(self._inspect(world))
        return {name for name, box in world.boxes.items() if states.get(name) != box.state}

    def _astray_links(self) -> list[str]:
        """Links on bridges that belong to no container of the engine."""
        held = (served.ns.ip("-o link") for served in self._served.values())
        ends = {number for text in held for number in re.findall(r"@if(\d+)", text)}
        there = self.sandbox.host.ip("-o link show type veth")
        links = re.findall(r"^(\d+): (\w+)@.* master br", there, re.MULTILINE)
        return [name for number, name in links if number not in ends]

    def _why(self, states: Mapping[str, str | None]) -> list[Any]:
        words = ("inspect", "--type=container", "--format={{.Name}} {{json .State}}", *states)
        return self.engine.docker(*words).splitlines()

    def _inspect(self, world: World) -> dict[str, Any]:
        if not world.boxes:
            return {}
        words = ("inspect", "--type=container", *world.boxes)
        return {each["Name"][1:]: each for each in json.loads(self.engine.docker(*words))}

    def _moved(self, box: Box) -> bool:
        """True if the container got a new address at its start or by a connect."""
        served = self._served[box.name]
        before, served.ends = served.ends, frozenset(filter(None, box.ends.values()))
        return not served.ends <= before

    def _serve(self, name: str, pid: int) -> None:
        """Run a server in a container."""
        served = self._served.get(name)
        if served is not None and served.pid == pid:
            return
        if served is not None:
            served.stack.close()
            self.restarted.add(name)
        ns = Namespace(name=name, path=self.engine.netns(pid))
        stack = ExitStack()
        server = stack.enter_context(serve(ns, name, tcp=LISTENS["tcp"], udp=LISTENS["udp"]))
        self._served[name] = Served(pid, ns, server, stack)

    def _check_routes(self, box: Box) -> None:
        """Add the local routes that are missing in a new container or for a new address.

        Without this route the container sends from the address and drops what is sent to it.
        """
        served, ends = self._served[box.name], frozenset(filter(None, box.ends.values()))
        new, served.routed = ends - served.routed, ends
        if not new:
            return
        routes = served.ns.ip("-6 route show table local")
        addresses = served.ns.ip("-6 -oneline address")
        for address in new:
            found = re.search(rf"^\d+: (\S+) +inet6 {address}/", addresses, re.MULTILINE)
            if found and f"local {address} " not in routes:
                self.unrouted += 1
                served.ns.ip(f"-6 route add local {address} dev {found[1]} table local")

    def close(self) -> None:
        for served in self._served.values():
            served.stack.close()


def states_of(facts: Mapping[str, Any]) -> dict[str, str | None]:
    return {name: STATES.get(each["State"]["Status"]) for name, each in facts.items()}


def learned(box: Box, facts: Any) -> Box:
    """A container with the addresses and ports that the engine reports."""
    if not box.up:
        return box
    networks = facts["NetworkSettings"]["Networks"]
    if set(networks) != set(box.ends):
        raise LabError(f"{box.name} is on {sorted(networks)} instead of {sorted(box.ends)}")
    ends = {
        name: IPv6Address(address) if (address := networks[name]["GlobalIPv6Address"]) else None
        for name in box.ends
    }
    chosen = {each: choices(each, facts) for each in box.publish if each.port is None}
    return replace(box, ends=ends, chosen=chosen)


def choices(publish: Publish, facts: Any) -> tuple[int, ...]:
    """The IPv6 host ports that the engine chose for a port without a number."""
    rows = facts["NetworkSettings"]["Ports"].get(f"{publish.inside}/{publish.protocol}") or ()
    return tuple(int(row["HostPort"]) for row in rows if ":" in row["HostIp"])


@contextmanager
def ground(variant: Variant, *, proxy: bool) -> Iterator[Ground]:
    """An empty lab, with only the engine's default network, which has no IPv6."""
    with ExitStack() as stack:
        sandbox = stack.enter_context(Sandbox(variant))
        engine = stack.enter_context(Engine(sandbox, "--live-restore", userland_proxy=proxy))
        bus = stack.enter_context(Bus(sandbox.dir))
        daemon = stack.enter_context(
            Daemon(sandbox, engine.endpoint, bus=bus.address, args=("-debug",))
        )
        ports = (OUTSIDE,)
        stack.enter_context(serve(sandbox.rogue, "rogue", tcp=ports, udp=ports))
        made = Ground(sandbox=sandbox, engine=engine, bus=bus, daemon=daemon)
        stack.callback(made.close)
        yield made


def file_count(folder: Path) -> int:
    return sum(1 for each in folder.rglob("*") if each.is_file())
