"""The facts of a container during its start: see ipv6natd.engine.facts."""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Any

import pytest

from ipv6natd.engine import parse
from ipv6natd.engine.facts import MAX_REQUESTS, Awaited, Facts
from ipv6natd.engine.host_ports import HostPorts
from ipv6natd.engine.parse import Connection, Subject
from ipv6natd.model import Engine, Protocol
from tests.harness.build import identity
from tests.harness.fake_engine import raw_container, raw_network, row

ENGINE = Engine(version="20.10.24")
WEB = identity("web")
FIRST, SECOND = "fd00:a::2", "fd00:b::2"
FROM_BEFORE = Awaited({}, ends=0, ports_in_use=None)
"""Of an inspect that began before everything else."""


class Answers:
    """Facts, and the answers and events of an engine."""

    def __init__(self) -> None:
        self.facts = Facts()
        self.address: dict[str, str] = {}
        """The address of the container on each network, for its next inspect."""
        self.shown_as = WEB
        """The key of the container in this inspect."""
        self.needed: list[Subject] = []
        """The inspects that the last answer made necessary."""
        self.in_use: HostPorts | None = frozenset()
        """The ports of the host's processes."""
        for name, subnet in (("x", "fd00:a::/64"), ("y", "fd00:b::/64")):
            self.network(name, subnet)

    def network(self, name: str, subnet: str = "", **fields: Any) -> bool:
        """The inspect of a network, begun and answered now."""
        raw = self.of_network(name, subnet or str(self.facts.networks[identity(name)].subnets[0]))
        awaited = self.facts.awaited(Subject("network", identity(name)), self.in_use)
        changed, self.needed = self.store("network", name, raw | fields, awaited=awaited)
        return changed

    def of_network(self, name: str, subnet: str) -> dict[str, Any]:
        raw = raw_network(name, subnet)
        if name in self.address:
            place = {"IPv6Address": f"{self.address[name]}/64", "MacAddress": "02:42:ac:12:00:02"}
            raw["Containers"] = {self.shown_as: place | {"Name": "web"}}
        return raw

    def store(
        self, kind: str, name: str, raw: object, *, awaited: Awaited = FROM_BEFORE
    ) -> tuple[bool, list[Subject]]:
        return self.facts.store(Subject(kind, identity(name)), raw, ENGINE, awaited=awaited)

    def created(
        self,
        *on: str,
        port: str = "8080",
        protocol: str = "tcp",
        address: str = "",
        **host: Any,
    ) -> None:
        request = {f"80/{protocol}": [{"HostIp": address, "HostPort": port}]}
        raw = raw_container("web") | {
            "State": {"Running": False},
            "HostConfig": {"PortBindings": request} | host,
            "NetworkSettings": {"Ports": {}, "Networks": {name: {} for name in on or ["x"]}},
        }
        self.facts.store_created(WEB, raw)

    def connect(self, name: str, address: str) -> None:
        """The event, and the inspect of the network that it causes."""
        self.address[name] = address
        self.told(name, connected=True)
        self.network(name)

    def disconnect(self, name: str) -> bool:
        if name:
            self.address.pop(name, None)
        else:
            self.address.clear()
        return self.told(name, connected=False)

    def told(self, name: str, *, connected: bool) -> bool:
        network = identity(name) if name else ""
        return self.facts.connection(Connection(WEB, network, connected=connected))

    def listed(self, *running: dict[str, Any]) -> None:
        """The answers of a list that has begun."""
        networks = [raw_network("x"), raw_network("y", "fd00:b::/64")]
        containers = [parse.container(row(raw), ENGINE) for raw in running]
        assert None not in containers
        self.facts.store_lists(networks, [it for it in containers if it], ENGINE)

    def runs(self, **fields: Any) -> bool:
        changed, _ = self.store("container", "web", raw_container("web") | fields)
        return changed

    def ended(self) -> bool:
        """The inspect of a container that does not run."""
        return self.runs(State={"Running": False})

    @property
    def web(self) -> tuple[str, ...] | None:
        """The addresses of the container with its state and host ports; None if it is unknown."""
        found = self.facts.containers.get(WEB)
        if found is None:
            return None
        addresses = [str(endpoint.address) for endpoint in found.endpoints]
        ports = [str(binding.host_port) for binding in found.bindings]
        return ("starting" if found.starting else "running", *addresses, *ports)


@pytest.fixture
def engine() -> Answers:
    return Answers()


EARLY = ("starting", FIRST, "8080")


def test_ports_and_address_are_known_during_the_start(engine: Answers) -> None:
    engine.created()
    assert engine.web is None
    engine.connect("x", FIRST)
    assert engine.web == EARLY
    assert engine.runs()
    assert engine.web == ("running", FIRST, "8080", "8080")
    assert not engine.network("x")


def test_answers_may_come_in_any_order(engine: Answers) -> None:
    engine.connect("x", FIRST)
    assert engine.web is None
    engine.created()
    assert engine.web == EARLY


@pytest.mark.parametrize("key", [WEB, "ep-0011"])
def test_address_is_known_before_the_event(engine: Answers, key: str) -> None:
    """Docker 26 and newer show a container by its name first."""
    engine.created()
    engine.address["x"], engine.shown_as = FIRST, key
    assert engine.network("x")
    assert engine.web == EARLY
    assert engine.needed == [Subject("container", WEB)]
    assert not engine.network("x")
    assert engine.needed == []
    assert not engine.told("x", connected=True)
    assert engine.web == EARLY


@pytest.mark.parametrize(
    ("port", "protocol", "in_use", "stored"),
    [
        ("8080", "tcp", {(Protocol.UDP, 8080), (Protocol.TCP, 80)}, True),
        ("8080", "tcp", {(Protocol.TCP, 8080)}, False),
        ("8080", "udp", {(Protocol.UDP, 8080)}, False),
        ("8080", "sctp", set(), False),
        ("8080", "tcp", None, False),
    ],
)
def test_start_that_may_fail_is_stored_with_its_event(
    engine: Answers,
    port: str,
    protocol: str,
    in_use: set[tuple[Protocol, int]] | None,
    stored: bool,
) -> None:
    """A rule would take the clients of the host's process."""
    engine.in_use = None if in_use is None else frozenset(in_use)
    engine.created(port=port, protocol=protocol)
    engine.address["x"] = FIRST
    assert engine.network("x") is stored
    assert (engine.web is not None) is stored
    assert engine.needed == [Subject("container", WEB)]
    engine.told("x", connected=True)
    assert engine.web is not None


def test_start_is_expected_on_each_network_until_the_container_runs(engine: Answers) -> None:
    """`docker network connect` may have added a network after the create event."""
    x, y = identity("x"), identity("y")
    assert not engine.facts.expects_start(x)
    engine.created()
    engine.address["x"] = FIRST
    assert engine.facts.expects_start(x)
    engine.network("x")
    assert not engine.facts.expects_start(x)
    assert engine.facts.expects_start(y)
    engine.runs()
    assert not engine.facts.expects_start(y)


def test_port_that_the_engine_opens_is_not_in_use_by_another(engine: Answers) -> None:
    engine.created()
    engine.address["x"] = FIRST
    engine.network("x")
    engine.in_use = frozenset({(Protocol.TCP, 8080)})
    engine.network("x")
    assert engine.web == EARLY


def test_inspect_of_the_network_from_before_the_end_does_not_count(engine: Answers) -> None:
    """It has the address of the last run."""
    engine.runs()
    engine.created()
    engine.address["x"] = FIRST
    subject = Subject("network", identity("x"))
    answer, awaited = engine.of_network("x", "fd00:a::/64"), engine.facts.awaited(subject)
    engine.told("", connected=False)
    engine.ended()
    engine.created()
    engine.store("network", "x", answer, awaited=awaited)
    assert engine.web is None
    engine.network("x")
    assert engine.web == EARLY


def test_start_that_fails_before_its_event_is_not_seen_again(engine: Answers) -> None:
    """Some engines keep showing an endpoint of a start that has failed."""
    engine.created()
    engine.address["x"] = FIRST
    engine.network("x")
    awaited = engine.facts.awaited(Subject("container", WEB))
    stopped = raw_container("web") | {"State": {"Running": False}}
    engine.store("container", "web", stopped, awaited=awaited)
    assert engine.web is None
    engine.network("x")
    assert engine.web is None
    engine.told("x", connected=True)
    engine.network("x")
    assert engine.web == EARLY


@pytest.mark.parametrize("renamed", [True, False])
def test_container_that_takes_over_a_name_gets_no_port_of_the_former_one(
    engine: Answers, renamed: bool
) -> None:
    """As by `docker compose up`. The engine shows it by its name, and its inspect is late."""
    engine.created()
    engine.runs()
    engine.told("", connected=False)
    if renamed:
        engine.facts.named(identity("new"), "web")
    else:
        engine.facts.named(WEB, "")
    engine.address["x"], engine.shown_as = SECOND, "ep-12"
    engine.network("x")
    assert engine.web is None
    assert engine.needed == []


def test_renamed_container_is_known_by_its_new_name(engine: Answers) -> None:
    engine.created()
    engine.facts.named(WEB, "old")
    engine.address["x"], engine.shown_as = FIRST, "ep-12"
    engine.network("x")
    assert engine.web is None
    engine.facts.named(WEB, "web")
    engine.network("x")
    assert engine.web == EARLY


def test_running_container_is_not_seen_as_starting(engine: Answers) -> None:
    engine.created()
    engine.runs()
    engine.address["x"] = SECOND
    engine.network("x")
    assert engine.web == ("running", FIRST, "8080", "8080")


def test_answer_from_before_the_start_changes_nothing(engine: Answers) -> None:
    engine.created()
    engine.connect("x", FIRST)
    assert not engine.ended()
    assert engine.web == EARLY


@pytest.mark.parametrize("name", ["x", ""])
def test_start_that_fails_leaves_nothing(engine: Answers, name: str) -> None:
    """By a disconnect event, or by the end of the container."""
    engine.created()
    engine.connect("x", FIRST)
    assert engine.disconnect(name)
    assert engine.web is None
    assert not engine.ended()
    engine.network("x")
    assert engine.web is None


def test_start_whose_end_no_event_will_tell_is_forgotten(engine: Answers) -> None:
    engine.created()
    engine.connect("x", FIRST)
    awaited = engine.facts.awaited(Subject("network", identity("x")))
    engine.facts.forget_starts()
    assert engine.web is None
    engine.store("network", "x", raw_network("x"), awaited=awaited)
    assert engine.web is None


def test_list_does_not_end_a_start(engine: Answers) -> None:
    """It has only the containers whose start has ended."""
    engine.created()
    engine.connect("x", FIRST)
    engine.facts.begin_list()
    engine.listed()
    assert engine.web == EARLY


def test_inspect_that_began_during_the_start_tells_its_failure(engine: Answers) -> None:
    """Also without the event: it waits for the end of the start."""
    engine.created()
    subject = Subject("container", WEB)
    before = engine.facts.awaited(subject)
    engine.connect("x", FIRST)
    stopped = raw_container("web") | {"State": {"Running": False}}
    engine.store("container", "web", stopped, awaited=before)
    assert engine.web == EARLY
    engine.store("container", "web", stopped, awaited=engine.facts.awaited(subject))
    assert engine.web is None


def test_inspects_of_a_failed_start_say_nothing_about_the_next_one(engine: Answers) -> None:
    """The second start has another address, and has not ended."""
    engine.created()
    engine.connect("x", FIRST)
    of_network = engine.of_network("x", "fd00:a::/64")
    network, container = Subject("network", identity("x")), Subject("container", WEB)
    first = {subject: engine.facts.awaited(subject) for subject in (network, container)}
    engine.disconnect("x")
    engine.told("x", connected=True)
    engine.store("network", "x", of_network, awaited=first[network])
    assert engine.web is None
    engine.connect("x", "fd00:a::7")
    stopped = raw_container("web") | {"State": {"Running": False}}
    engine.store("container", "web", stopped, awaited=first[container])
    assert engine.web == ("starting", "fd00:a::7", "8080")


def test_list_with_the_container_confirms_it(engine: Answers) -> None:
    engine.created()
    engine.connect("x", FIRST)
    awaited = engine.facts.awaited(Subject("network", identity("x")))
    engine.facts.begin_list()
    engine.listed(raw_container("web"))
    engine.store("network", "x", raw_network("x"), awaited=awaited)
    assert engine.web == ("running", FIRST, "8080", "8080")


def test_start_during_a_list_is_kept(engine: Answers) -> None:
    engine.created()
    engine.facts.begin_list()
    engine.connect("x", FIRST)
    engine.listed()
    assert engine.web == EARLY


def test_restart_has_the_new_address(engine: Answers) -> None:
    engine.created()
    engine.connect("x", FIRST)
    engine.runs()
    assert engine.told("", connected=False)
    assert engine.web is None
    assert not engine.ended()
    engine.created()
    engine.connect("x", "fd00:a::7")
    assert engine.web == ("starting", "fd00:a::7", "8080")


def test_restart_needs_no_inspect_between_end_and_start(engine: Answers) -> None:
    """The inspect of the run has the requests for the next one too."""
    request = {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}
    settings = raw_container("web")["NetworkSettings"] | {"Networks": {"x": {}}}
    engine.runs(HostConfig={"PortBindings": request}, NetworkSettings=settings)
    engine.told("", connected=False)
    engine.connect("x", "fd00:a::7")
    assert engine.web == ("starting", "fd00:a::7", "8080")


def test_late_answer_of_the_end_ends_no_new_start(engine: Answers) -> None:
    engine.runs()
    engine.told("", connected=False)
    engine.told("x", connected=True)
    assert not engine.ended()
    assert engine.web is None


def test_end_counts_before_the_inspect_and_a_list_that_had_begun(engine: Answers) -> None:
    """Another container can have the address while the inspect hangs."""
    engine.runs()
    engine.facts.begin_list()
    assert engine.told("", connected=False)
    assert engine.web is None
    engine.listed(raw_container("web"))
    assert engine.web is None
    # An event of an earlier run that comes late: the inspect corrects it.
    assert engine.runs()
    assert engine.web == ("running", FIRST, "8080", "8080")


def test_ends_are_counted_by_bridge(engine: Answers) -> None:
    bridge = engine.facts.networks[identity("x")].bridge
    engine.runs()
    engine.told("", connected=False)
    assert engine.facts.ended == {bridge: 1}
    # Not that of a container that is not known to run.
    engine.told("", connected=False)
    assert engine.facts.ended == {bridge: 1}
    # Also that of one that only starts: its port is there at the connect event.
    engine.created("x")
    engine.connect("x", FIRST)
    engine.told("", connected=False)
    assert engine.facts.ended == {bridge: 2}
    # The port of a container leaves its bridge after the end, perhaps after a list.
    engine.facts.begin_list()
    engine.listed()
    engine.told("x", connected=True)
    engine.runs()
    engine.told("", connected=False)
    assert engine.facts.ended == {bridge: 3}


@pytest.mark.parametrize("disconnect_is_first", [True, False])
def test_end_and_its_disconnects_count_once(engine: Answers, disconnect_is_first: bool) -> None:
    """Docker 20.10 sends the end first, newer versions the disconnects. A list can show the
    container between them."""
    x, y = (engine.facts.networks[identity(name)].bridge for name in "xy")
    places = [raw_container("web", on=name)["NetworkSettings"]["Networks"] for name in "xy"]
    on_both = {"NetworkSettings": {"Ports": {}, "Networks": places[0] | places[1]}}
    engine.runs(**on_both)
    for network in ["x", "y", ""] if disconnect_is_first else ["", "y", "x"]:
        engine.told(network, connected=False)
        engine.runs(**on_both)
    assert engine.facts.ended == {x: 1, y: 1}
    engine.told("x", connected=True)
    engine.told("x", connected=False)
    assert engine.facts.ended == {x: 2, y: 1}
    engine.facts.named(WEB, "")
    engine.runs(**on_both)
    engine.told("y", connected=False)
    assert engine.facts.ended == {x: 2, y: 2}


def test_connect_of_a_running_container_waits_for_its_inspect(engine: Answers) -> None:
    engine.runs()
    engine.connect("y", SECOND)
    assert engine.web == ("running", FIRST, "8080", "8080")


def test_several_networks_are_known_together(engine: Answers) -> None:
    engine.created("x", "y")
    engine.connect("x", FIRST)
    assert engine.web is None
    engine.connect("y", SECOND)
    assert engine.web == ("starting", FIRST, SECOND, "8080")


def test_network_that_was_added_before_the_start_counts_too(engine: Answers) -> None:
    """By `docker network connect`, for which the engine sends no event then."""
    engine.created("x")
    engine.connect("x", FIRST)
    engine.connect("y", SECOND)
    assert engine.web == ("starting", FIRST, SECOND, "8080")


def test_network_of_another_driver_leaves_it_uncertain(engine: Answers) -> None:
    """As of a swarm task, whose ports go by docker_gwbridge."""
    engine.network("y", Driver="overlay")
    engine.created("x", "y")
    engine.connect("x", FIRST)
    engine.told("y", connected=True)
    engine.network("y", Driver="overlay")
    assert engine.web is None


@pytest.mark.parametrize("port", ["", "0", "8000-8010", "70000", "x"])
def test_port_that_the_engine_chooses_comes_with_the_inspect(engine: Answers, port: str) -> None:
    engine.created(port=port)
    engine.connect("x", FIRST)
    assert engine.web is None


@pytest.mark.parametrize("name", ["x", identity("x"), identity("x")[:12]])
def test_network_may_be_named_by_its_id(engine: Answers, name: str) -> None:
    engine.created(name)
    engine.connect("x", FIRST)
    assert engine.web == EARLY


def test_default_address_for_ipv4_bindings_leaves_ipv6_uncertain(engine: Answers) -> None:
    option = {"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"}
    engine.created()
    engine.network("x", Options=option)
    engine.address["x"] = FIRST
    engine.told("x", connected=True)
    engine.network("x", Options=option)
    assert engine.web is None


def test_sysctl_that_disables_ipv6_is_known_before_the_start(engine: Answers) -> None:
    engine.created(Sysctls={"net.ipv6.conf.all.disable_ipv6": "1"})
    engine.connect("x", FIRST)
    assert engine.web == ("starting", "None", "8080")


def test_address_is_that_of_the_request(engine: Answers) -> None:
    engine.created(address="2001:db8::1")
    engine.connect("x", FIRST)
    (binding,) = engine.facts.containers[WEB].bindings
    assert binding.host_address == IPv6Address("2001:db8::1")
    assert binding.explicit_address


def test_requests_are_limited_in_number(engine: Answers) -> None:
    engine.created()
    for number in range(MAX_REQUESTS):
        raw = raw_container(f"c{number}") | {"State": {"Running": False}}
        engine.facts.store_created(identity(f"c{number}"), raw)
    engine.connect("x", FIRST)
    assert engine.web is None
