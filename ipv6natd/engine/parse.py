"""Docker's JSON -> Network | Container | Engine: the only file with Docker's field names.

No input raises an exception. An object without a valid id is None; an unreadable value is replaced
by its default, with a warning or problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Set
from collections.abc import Mapping as Map
from dataclasses import replace
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from sys import intern
from typing import Any, NamedTuple

from ipv6natd.model import (
    ANY,
    BOOLEANS,
    GWBRIDGE,
    Container,
    Endpoint,
    Engine,
    GatewayMode,
    Network,
    PortBinding,
    Protocol,
    is_plain_interface,
)

Address = IPv4Address | IPv6Address
Problem = tuple[str, str]
"""An element of Container.problems."""

_BRIDGE = "com.docker.network.bridge."
_DISABLE_IPV6 = "net.ipv6.conf.{}.disable_ipv6"
_ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"
"""The option of an endpoint for sysctls of its interface, as IFNAME; since Docker 27."""
INSPECTED = ("Id", "Name", "State", "HostConfig", "NetworkSettings")
"""The fields of the inspect of a container that are read. Others can be long."""
_ID = re.compile(r"[A-Za-z0-9]{1,64}", re.ASCII)
_IPV6_LISTED_SINCE = (20, 10, 6)
"""The first release that lists the IPv6 side of a wildcard binding."""


class Subject(NamedTuple):
    """An object to inspect."""

    kind: str
    """ "container" or "network"."""
    id: str


def quoted(value: object, limit: int = 60) -> str:
    """A foreign value in quotes for a message, escaped and at most `limit` characters long."""
    text = ascii(value) if isinstance(value, str) else ascii(str(value))
    return text if len(text) <= limit else f"{text[: limit - 4]}...'"


def engine(version: object, info: object, *, ip6tables: bool | None = None) -> Engine:
    """GET /version and GET /info -> Engine. No API gives the option `ip6tables`.

    Without /info (None) the engine may be experimental: its rules in the kernel decide.
    """
    security = [_str(option) for option in _list(_dict(info).get("SecurityOptions"))]
    return Engine(
        version=_text(_dict(version).get("Version")) or "unknown",
        rootless=any("rootless" in option for option in security),
        experimental=info is None or _dict(info).get("ExperimentalBuild") is True,
        ip6tables=ip6tables,
    )


def is_podman(version: object) -> bool:
    """True if GET /version is the answer of Podman, which has an API for Docker's clients."""
    components = _list(_dict(version).get("Components"))
    return any("podman" in _str(_dict(part).get("Name")).lower() for part in components)


def network(raw: object) -> Network | None:
    """One network, from GET /networks or /networks/ID; None without a valid id."""
    facts = _dict(raw)
    network_id = _str(facts.get("Id"))
    if not _ID.fullmatch(network_id):
        return None
    options = {_str(key): value for key, value in _dict(facts.get("Options")).items()}
    warnings: list[str] = []
    name = _text(facts.get("Name")) or network_id[:12]
    bridge = _str(options.get(f"{_BRIDGE}name")) or f"br-{network_id[:12]}"
    return Network(
        id=network_id,
        name=name,
        driver=_text(facts.get("Driver")),
        bridge=bridge if is_plain_interface(bridge) else "",
        enable_ipv6=facts.get("EnableIPv6") is True,
        subnets=tuple(_subnets(facts, warnings)),
        gateway=_gateway(facts),
        internal=facts.get("Internal") is True,
        icc=_option_flag(options, f"{_BRIDGE}enable_icc", warnings),
        masquerade=_option_flag(options, f"{_BRIDGE}enable_ip_masquerade", warnings),
        gateway_mode=_gateway_mode(options, warnings),
        host_binding_ipv4=_option_address(options, f"{_BRIDGE}host_binding_ipv4", warnings),
        host_binding_ipv6=_option_ipv6(options, f"{_BRIDGE}host_binding_ipv6", warnings),
        source_address=_option_ipv6(options, "com.docker.network.host_ipv6", warnings),
        trusted_interfaces=tuple(_trusted_interfaces(options, warnings)),
        warnings=tuple(warnings),
        problem=_network_problem(facts, bridge),
        gateway_endpoints=tuple(_gateway_endpoints(facts, name)),
    )


def _network_problem(facts: dict[str, Any], bridge: str) -> str:
    """Why no rule can be written for a network; "" if that is possible."""
    if facts.get("Ingress") is True:
        return (
            "ports that swarm publishes in ingress mode are left to Docker; "
            "publish them with mode=host to have them forwarded"
        )
    if not is_plain_interface(bridge):
        return (
            f"its bridge name {quoted(bridge)} cannot be used in a rule; create the network with "
            "a bridge name of at most 15 letters, digits, '.', '_' or '-'"
        )
    return ""


def listed_network(raw: object, known: Map[str, Network]) -> Network | None:
    """One network of GET /networks, which has no endpoints: they are taken from `known`."""
    listed = network(raw)
    previous = known.get(listed.id) if listed else None
    if listed is None or previous is None or listed.gateway_endpoints:
        return listed
    return replace(listed, gateway_endpoints=previous.gateway_endpoints)


def container(raw: object, engine: Engine) -> Container | None:
    """One container, from its inspect or its row in the list; None if it does not run."""
    facts = _dict(raw)
    container_id = _str(facts.get("Id"))
    state = facts.get("State")
    # State is an object in an inspect, and a string in the list, which has only running containers.
    running = state.get("Running") is True if isinstance(state, dict) else True
    if not _ID.fullmatch(container_id) or not running:
        return None
    names = [_text(name) for name in _list(facts.get("Names"))] or [_text(facts.get("Name"))]
    # A legacy link adds its alias "/app/db" to the name "/db", in any order.
    name = next((name for name in names if "/" not in name[1:]), names[0])
    bindings = tuple(dict.fromkeys(_bindings(facts, engine)))
    return Container(
        id=container_id,
        name=name.removeprefix("/") or container_id[:12],
        endpoints=tuple(_endpoints(facts)),
        bindings=tuple(found for found in bindings if isinstance(found, PortBinding)),
        unpublished=tuple(_unpublished(facts)),
        problems=tuple(found for found in bindings if not isinstance(found, PortBinding)),
    )


class Requested(NamedTuple):
    """What the start of a container needs, from an inspect before the start."""

    name: str
    bindings: tuple[PortBinding, ...]
    """The ports with a number that the user named. The engine chooses the others at the start."""
    networks: dict[str, tuple[int, bool]]
    """Network, as the user named it -> gateway priority, and whether a sysctl disables IPv6."""


def requested(raw: object) -> Requested | None:
    """The requests of a container for its next start; None without a valid id."""
    facts = _dict(raw)
    if not _ID.fullmatch(_str(facts.get("Id"))):
        return None
    return Requested(
        name=_text(facts.get("Name")).removeprefix("/"),
        bindings=tuple(_named_bindings(facts)),
        networks={
            name: (_gateway_priority(endpoint), ipv6_off)
            for name, endpoint, ipv6_off in _raw_endpoints(facts)
        },
    )


def _named_bindings(container: dict[str, Any]) -> Iterator[PortBinding]:
    """The requests with a host port. One without an address is for all addresses of the host."""
    for port, requests in _dict(_dict(container.get("HostConfig")).get("PortBindings")).items():
        for request in map(_dict, _list(requests)):
            binding = _binding(port, request.get("HostIp"), request.get("HostPort"))
            if isinstance(binding, PortBinding) and binding.host_port:
                yield replace(binding, explicit_address=binding.host_address is not None)


def starting(
    container_id: str,
    request: Requested,
    connected: Map[str, IPv6Address | None],
    networks: Map[str, Network],
) -> Container | None:
    """A container during its start; None if it is not certain yet.

    `connected` has the networks that the engine has connected, with the container's addresses. A
    network that `docker network connect` has added before the start is in no earlier inspect.
    """
    named = {_named_network(name, connected, networks): name for name in request.networks}
    endpoints = []
    for network_id, place in connected.items():
        network = networks.get(network_id)
        # The engine's default for IPv4 bindings can mean that there is no binding for IPv6.
        if (
            network is None
            or network.driver != "bridge"
            or network.host_binding_ipv4 not in (None, IPv4Address(0))
        ):
            return None
        priority, ipv6_off = request.networks.get(named.get(network_id, ""), (0, False))
        endpoints.append(_starting_endpoint(network, None if ipv6_off else place, priority))
    if not named or "" in named or len(named) < len(request.networks):
        return None
    return Container(
        id=container_id,
        name=request.name or container_id[:12],
        endpoints=tuple(endpoints),
        bindings=request.bindings,
        starting=True,
    )


def _starting_endpoint(network: Network, address: IPv6Address | None, priority: int) -> Endpoint:
    return Endpoint(
        network_id=network.id,
        address=address,
        has_gateway4=not network.internal,
        has_gateway6=address is not None and not network.internal,
        gw_priority=priority,
    )


def _named_network(name: str, connected: Iterable[str], networks: Map[str, Network]) -> str:
    """The id of the connected network with this name, or whose id begins so: the user names either.

    "" if there is none, or several.
    """
    known = [networks[network_id] for network_id in connected if network_id in networks]
    name = "bridge" if name == "default" else name
    found = [network for network in known if network.name == name]
    found = found or [network for network in known if name and network.id.startswith(name)]
    return found[0].id if len(found) == 1 else ""


def attached(raw_network: object) -> dict[str, IPv6Address | None]:
    """The addresses of the containers in the inspect of a network, by id.

    Docker 26 and newer show one that is being connected without its id: it is here by its name, in
    Docker's form `/NAME`.
    """
    found = {}
    for key, raw in _dict(_dict(raw_network).get("Containers")).items():
        endpoint = _dict(raw)
        name = key if _ID.fullmatch(key) else f"/{_str(endpoint.get('Name'))}"
        address = _parse_address(_str(endpoint.get("IPv6Address")).partition("/")[0])
        found[name] = address if isinstance(address, IPv6Address) else None
    return found


def needs_inspect(listed: Container, engine: Engine, networks: Map[str, Network]) -> bool:
    """True if the list lacks facts that decide about this container.

    - Before 20.10.6, the list has no IPv6 bindings.
    - Before 28, it has an IPv6 address also if a sysctl disables IPv6 in the container.
    - From 28, it has no address then, and without the userland proxy no IPv6 binding.
    - host_binding_ipv6 of a network is used for requests without an address. Only an inspect has
      the requests.
    - Without a bridge network that has a gateway, the engine publishes no port.
    """
    attached = _attached_networks(listed, networks)
    if not listed.bindings and all(net.driver != "bridge" or net.internal for net in attached):
        return True
    if engine.release < _IPV6_LISTED_SINCE or any(net.host_binding_ipv6 for net in attached):
        return bool(listed.bindings)
    if engine.release < (28,):
        return any(isinstance(binding.host_address, IPv6Address) for binding in listed.bindings)
    without = {endpoint.network_id for endpoint in listed.endpoints if endpoint.address is None}
    return any(net.enable_ipv6 and net.id in without for net in attached) and any(
        binding.host_address == IPv4Address(0) for binding in listed.bindings
    )


def _attached_networks(container: Container, networks: Map[str, Network]) -> list[Network]:
    """The known networks of a container."""
    ids = (endpoint.network_id for endpoint in container.endpoints)
    return [networks[network_id] for network_id in ids if network_id in networks]


def matches_inspect(listed: Container, known: Container | None) -> bool:
    """True if a row of the list has the same facts as an earlier inspect of the container.

    Only the address of an endpoint may differ, if the inspect has none.
    """
    if known is None:
        return False
    old, new = (
        {endpoint.network_id: endpoint.address for endpoint in container.endpoints}
        for container in (known, listed)
    )
    # Only an inspect has the requests, so only there an address may be not explicit.
    bindings = {replace(binding, explicit_address=True) for binding in known.bindings}
    return (
        known.name == listed.name
        and old.keys() == new.keys()
        and all(address in (None, new[network_id]) for network_id, address in old.items())
        and bindings == set(listed.bindings)
    )


def on_gwbridge(container: Container, networks: Map[str, Network]) -> bool:
    """True if the container publishes ports and may be a swarm task on docker_gwbridge."""
    attached = _attached_networks(container, networks)
    return bool(container.bindings) and not any(net.driver == "bridge" for net in attached)


# The events that can change a rule. Health checks and exec would send an event each second.
EVENTS = {
    "type": ["container", "network"],
    "event": ["start", "die", "destroy", "rename", "connect", "disconnect", "create", "remove"],
}
_ENDS = frozenset({"die", "destroy", "disconnect", "remove"})


class _Event(NamedTuple):
    """What an event is about. Events of all API versions have `Type` and `Actor`, and not all have
    `id` and `status`."""

    kind: str
    action: str
    id: str
    """Of the object; "" if it is not valid."""
    container: str
    """The id of the container that a network connects or disconnects; "" if there is none."""
    name: str
    """The name of a container; "" if the event has none."""


def _event(raw: object) -> _Event:
    event = _dict(raw)
    actor = _dict(event.get("Actor"))
    attributes = _dict(actor.get("Attributes"))
    object_id, container = _str(actor.get("ID")), _str(attributes.get("container"))
    return _Event(
        kind=_str(event.get("Type")),
        action=_str(event.get("Action")),
        id=object_id if _ID.fullmatch(object_id) else "",
        container=container if _ID.fullmatch(container) else "",
        name=_text(attributes.get("name")).removeprefix("/"),
    )


def is_end(raw: object) -> bool:
    """True for the end of an object. A stopping engine sends no other events."""
    return _event(raw).action in _ENDS


def event_subjects(raw: object) -> list[Subject]:
    """The objects that an event may have changed."""
    event = _event(raw)
    subjects: list[Subject] = []
    match event.kind, event.action:
        case "container", "start" | "die" | "destroy" | "rename":
            subjects = [Subject("container", event.id)]
        case "network", _:
            subjects = [Subject("container", event.container), Subject("network", event.id)]
    return [subject for subject in subjects if subject.id]


def created(raw: object) -> str:
    """The id of the container that the event says is created; "" for another event."""
    event = _event(raw)
    return event.id if (event.kind, event.action) == ("container", "create") else ""


class Connection(NamedTuple):
    """What an event tells of a container's start or end; `network` is "" for all networks."""

    container: str
    network: str
    connected: bool


def connection(raw: object) -> Connection | None:
    """The connect or disconnect of an event; the end of a container disconnects all networks."""
    event = _event(raw)
    match event.kind, event.action:
        case "network", "connect" | "disconnect" if event.id and event.container:
            return Connection(event.container, event.id, connected=event.action == "connect")
        case "container", "die" | "destroy" if event.id:
            return Connection(event.id, "", connected=False)
    return None


def named(raw: object) -> tuple[str, str] | None:
    """(container id, its name from now on) of an event, with "" for no known name; None for other
    events."""
    event = _event(raw)
    match event.kind, event.action:
        case "container", "rename" if event.id:
            return event.id, event.name
        case "container", "destroy" if event.id:
            return event.id, ""
    return None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _str(value: object) -> str:
    return value if isinstance(value, str) else ""


def _text(value: object) -> str:
    """A name for messages: at most 255 characters, without lone surrogates of JSON escapes."""
    return _str(value)[:255].encode("utf-8", "replace").decode()


def _subnets(facts: dict[str, Any], warnings: list[str]) -> Iterator[IPv6Network]:
    for config in _list(_dict(facts.get("IPAM")).get("Config")):
        subnet = _str(_dict(config).get("Subnet"))
        if ":" not in subnet:
            continue
        try:
            # The library accepts any text after "%", also line breaks.
            yield IPv6Network(subnet if "%" not in subnet else "", strict=False)
        except ValueError:
            warnings.append(f"its subnet {quoted(subnet)} cannot be read and is left out")


def _gateway(facts: dict[str, Any]) -> IPv6Address | None:
    """The address that the engine gives the bridge: the bridge driver has one IPv6 subnet.

    Without a configured gateway, the engine's own IPAM takes the first address of the range for
    containers when it creates the network (measured with 20.10, 26.1 and 28.5).
    """
    ipam = _dict(facts.get("IPAM"))
    configs = [_dict(config) for config in _list(ipam.get("Config"))]
    config = next((c for c in configs if ":" in _str(c.get("Subnet"))), {})
    # The engine writes some gateways with the length of the prefix.
    named = _parse_address(_str(config.get("Gateway")).partition("/")[0])
    if isinstance(named, IPv6Address):
        return named
    if config.get("Gateway") or ipam.get("Driver") not in (None, "", "default"):
        return None
    text = _str(config.get("Subnet"))
    try:
        subnet, pool = (
            IPv6Network(prefix if "%" not in prefix else "", strict=False)
            for prefix in (text, _str(config.get("IPRange") or text))
        )
    except ValueError:
        return None
    if pool[0] != subnet[0]:
        return pool[0]
    # The first address of a subnet is the anycast address of its routers.
    return pool[1] if pool.num_addresses > 1 else None


def _gateway_endpoints(facts: dict[str, Any], name: str) -> Iterator[tuple[str, IPv6Address]]:
    """The swarm tasks on docker_gwbridge; their inspect does not have this network."""
    if name != GWBRIDGE:
        return
    for container_id, address in sorted(attached(facts).items()):
        if address is not None and not container_id.startswith("/"):
            yield container_id, address


def _option_flag(options: dict[str, Any], key: str, warnings: list[str]) -> bool:
    value = options.get(key)
    flag = True if value is None else BOOLEANS.get(_str(value))
    if flag is None:
        warnings.append(f"{key}={quoted(value)} is neither true nor false; true is in force")
    return flag is not False


def _gateway_mode(options: dict[str, Any], warnings: list[str]) -> GatewayMode:
    key = f"{_BRIDGE}gateway_mode_ipv6"
    value = options.get(key)
    if value in (None, ""):
        return GatewayMode.NAT
    try:
        return GatewayMode(value)
    except ValueError:
        legal = ", ".join(GatewayMode)
        warnings.append(f"{key}={quoted(value)} is none of {legal}; nat is in force")
        return GatewayMode.NAT


def _option_address(options: dict[str, Any], key: str, warnings: list[str]) -> Address | None:
    value = options.get(key)
    if value in (None, ""):
        return None
    address = _parse_address(_str(value))
    if address is None:
        warnings.append(f"{key}={quoted(value)} is not an IP address and is ignored")
    return address


def _option_ipv6(options: dict[str, Any], key: str, warnings: list[str]) -> IPv6Address | None:
    address = _option_address(options, key, warnings)
    if isinstance(address, IPv4Address):
        warnings.append(f"{key}={address} is not an IPv6 address and is ignored")
        return None
    return address


def _trusted_interfaces(options: dict[str, Any], warnings: list[str]) -> Iterator[str]:
    key = f"{_BRIDGE}trusted_host_interfaces"
    for name in filter(None, _str(options.get(key)).split(":")):
        if is_plain_interface(name):
            yield name
        else:
            warnings.append(f"{key} has {quoted(name)}, which is not an interface name; left out")


@lru_cache(maxsize=256)
def _parse_address(text: str) -> Address | None:
    """The address; None if it is invalid or has a zone. Docker binds `::ffff:a.b.c.d` as IPv4.

    Cached, because all containers have the same few addresses in their bindings.
    """
    if text == "::":
        return ANY
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id:
            return None
        return address.ipv4_mapped or address
    return address


def _raw_endpoints(container: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    """(network, endpoint, whether a sysctl disables IPv6 on it) for each network of an inspect."""
    sysctls = _dict(_dict(container.get("HostConfig")).get("Sysctls"))
    networks = _dict(_dict(container.get("NetworkSettings")).get("Networks"))
    # No fact tells which of several networks has which interface.
    names = ("all", "eth0") if len(networks) == 1 else ("all",)
    off_by_sysctl = any(
        sysctls.get(_DISABLE_IPV6.format(name), "0") not in ("0", "") for name in names
    )
    for name, raw in networks.items():
        facts = _dict(raw)
        options = _str(_dict(facts.get("DriverOpts")).get(_ENDPOINT_SYSCTLS)).split(",")
        yield name, facts, off_by_sysctl or f"{_DISABLE_IPV6.format('IFNAME')}=1" in options


def _gateway_priority(endpoint: dict[str, Any]) -> int:
    priority = endpoint.get("GwPriority")
    return priority if type(priority) is int else 0


def _endpoints(container: dict[str, Any]) -> Iterator[Endpoint]:
    for _, facts, ipv6_off in _raw_endpoints(container):
        network_id = _str(facts.get("NetworkID"))
        if not _ID.fullmatch(network_id):
            continue
        address = _parse_address(_str(facts.get("GlobalIPv6Address")))
        # Docker 20.10 may add a prefix length or use "<nil>". Only the presence is needed.
        gateway6 = _parse_address(_str(facts.get("IPv6Gateway")).partition("/")[0])
        yield Endpoint(
            network_id=intern(network_id),
            address=address if isinstance(address, IPv6Address) and not ipv6_off else None,
            has_gateway4=bool(_str(facts.get("Gateway"))),
            has_gateway6=isinstance(gateway6, IPv6Address) and not ipv6_off,
            gw_priority=_gateway_priority(facts),
        )


def _bindings(container: dict[str, Any], engine: Engine) -> Iterator[PortBinding | Problem]:
    if "Ports" in container:  # a row of the list
        for row in map(_dict, _list(container.get("Ports"))):
            # Docker 29 lists a port that is only exposed too, with an empty address.
            if "PublicPort" in row or row.get("IP"):
                port = f"{row.get('PrivatePort')}/{row.get('Type')}"
                yield _binding(port, row.get("IP"), str(row.get("PublicPort") or ""))
        return
    all_requests = _dict(_dict(container.get("HostConfig")).get("PortBindings"))
    for port, entries in _dict(_dict(container.get("NetworkSettings")).get("Ports")).items():
        requests = map(_dict, _list(all_requests.get(port)))
        requested = {_parse_address(_str(request.get("HostIp"))) for request in requests}
        bound = [
            _binding(port, entry.get("HostIp"), entry.get("HostPort"), requested)
            for entry in map(_dict, _list(entries))
        ]
        yield from bound
        if engine.release < _IPV6_LISTED_SINCE:
            yield from _hidden_ipv6_bindings(bound)


def _unpublished(container: dict[str, Any]) -> Iterator[PortBinding]:
    """The requests in an inspect for ports that the engine publishes on no host port."""
    published = _dict(_dict(container.get("NetworkSettings")).get("Ports"))
    for port, requests in _dict(_dict(container.get("HostConfig")).get("PortBindings")).items():
        if not published.get(port):
            for request in map(_dict, _list(requests)):
                # A request may name a range, "8000-8010": the engine would choose one of them.
                first = _str(request.get("HostPort")).partition("-")[0]
                binding = _binding(port, request.get("HostIp"), first)
                if isinstance(binding, PortBinding):
                    yield binding


def _hidden_ipv6_bindings(bound: list[PortBinding | Problem]) -> Iterator[PortBinding]:
    """The IPv6 side of IPv4 wildcard bindings, which engines before 20.10.6 do not list."""
    bindings = [found for found in bound if isinstance(found, PortBinding)]
    if any(isinstance(binding.host_address, IPv6Address) for binding in bindings):
        return
    for binding in bindings:
        if binding.host_address == IPv4Address(0) and not binding.explicit_address:
            yield replace(binding, host_address=None)


def _binding(
    port: str, host_ip: object, host_port: object, requested: Set[Address | None] | None = None
) -> PortBinding | Problem:
    """One binding. `requested` are the addresses of the requests for the port, None if unknown."""
    number, _, protocol = port.partition("/")
    has_address = host_ip not in ("", None)
    address = _parse_address(_str(host_ip)) if has_address else None
    if protocol not in tuple(Protocol) or not 1 <= _parse_port(number) <= 65535:
        problem = f"the engine lists a port that cannot be read: {quoted(port)}"
    elif has_address and address is None:
        problem = f"the engine binds it to {quoted(host_ip)}, which is not an IP address"
    elif host_port not in ("", None) and not 1 <= _parse_port(host_port) <= 65535:
        problem = f"the engine lists {quoted(host_port)} as its host port"
    else:
        return PortBinding(
            protocol=Protocol(protocol),
            container_port=_parse_port(number),
            host_address=address,
            host_port=max(_parse_port(host_port), 0),
            explicit_address=requested is None or address in requested,
        )
    is_port = re.fullmatch(r"[0-9]{1,5}/[a-z]{1,8}", port, re.ASCII)
    return port if is_port else quoted(port), problem


def _parse_port(value: object) -> int:
    text = _str(value)
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) else -1
