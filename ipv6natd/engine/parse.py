"""Docker's JSON -> Network | Container | Engine: the only file with Docker's field names.

No input raises an exception. An object without a valid id is None; an unreadable value is replaced
by its default, with a warning or problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping as Map
from dataclasses import replace
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address, IPv6Network, ip_address
from operator import attrgetter
from sys import intern
from typing import Any

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

_BRIDGE = "com.docker.network.bridge."
_ID = re.compile(r"[A-Za-z0-9]{1,64}", re.ASCII)
_IPV6_LISTED_SINCE = (20, 10, 6)
"""The first release that lists the IPv6 side of a wildcard binding."""


def quoted(value: object, limit: int = 60) -> str:
    """A foreign value in quotes for a message, escaped and at most `limit` characters long."""
    text = ascii(value) if isinstance(value, str) else ascii(str(value))
    return text if len(text) <= limit else f"{text[: limit - 4]}...'"


def engine(version: object, info: object, *, ip6tables: bool | None = None) -> Engine:
    """GET /version and GET /info -> Engine. No API gives the option `ip6tables`."""
    security = [_str(option) for option in _list(_dict(info).get("SecurityOptions"))]
    return Engine(
        version=_text(_dict(version).get("Version")) or "unknown",
        api_version=_text(_dict(version).get("ApiVersion")),
        rootless=any("rootless" in option for option in security),
        experimental=_dict(info).get("ExperimentalBuild") is True,
        ip6tables=ip6tables,
    )


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
    settings = _dict(facts.get("NetworkSettings"))
    host_config = _dict(facts.get("HostConfig"))
    problems: list[tuple[str, str]] = []
    bindings = (
        _listed_bindings(_list(facts.get("Ports")), problems)
        if "Ports" in facts
        else _inspected_bindings(_dict(settings.get("Ports")), host_config, engine, problems)
    )
    return Container(
        id=container_id,
        name=name.removeprefix("/") or container_id[:12],
        endpoints=tuple(_endpoints(settings, _ipv6_off(host_config))),
        bindings=tuple(dict.fromkeys(bindings)),
        problems=tuple(dict.fromkeys(problems)),
    )


def needs_inspect(listed: Container, engine: Engine, networks: Map[str, Network]) -> bool:
    """True if the list lacks facts that decide about this container.

    - Before 20.10.6, the list has no IPv6 bindings.
    - Before 28, it has an IPv6 address also if a sysctl disables IPv6 in the container.
    - From 28, it has no address then, and without the userland proxy no IPv6 binding.
    - host_binding_ipv6 of a network is used for requests without an address. Only an inspect has
      the requests.
    """
    attached = _attached_networks(listed, networks)
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
    if known is None or (known.name, len(known.endpoints)) != (listed.name, len(listed.endpoints)):
        return False

    def bindings(container: Container) -> set[tuple[object, ...]]:
        return {
            (binding.protocol, binding.container_port, binding.host_address, binding.host_port)
            for binding in container.bindings
        }

    endpoints = zip(
        sorted(known.endpoints, key=attrgetter("network_id")),
        sorted(listed.endpoints, key=attrgetter("network_id")),
        strict=True,
    )
    return bindings(known) == bindings(listed) and all(
        old.network_id == new.network_id and old.address in (None, new.address)
        for old, new in endpoints
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
_CONTAINER_ACTIONS = frozenset({"start", "die", "destroy", "rename"})


def is_end(raw: object) -> bool:
    """True for the end of an object. A stopping engine sends no other events.

    >>> is_end({"Action": "die"})
    True
    """
    return _str(_dict(raw).get("Action")) in _ENDS


def event_subjects(raw: object) -> tuple[str, str]:
    """The (container id, network id) of an event; "" without one.

    Events of all API versions have `Type` and `Actor`, and not all have `id` and `status`.
    """
    event = _dict(raw)
    actor = _dict(event.get("Actor"))
    subject = _str(actor.get("ID"))
    match event.get("Type"):
        case "container":
            return (subject if _str(event.get("Action")) in _CONTAINER_ACTIONS else ""), ""
        case "network":
            return _str(_dict(actor.get("Attributes")).get("container")), subject
    return "", ""


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


def _gateway_endpoints(facts: dict[str, Any], name: str) -> Iterator[tuple[str, IPv6Address]]:
    """The swarm tasks on docker_gwbridge; their inspect does not have this network."""
    if name != GWBRIDGE:
        return
    for container_id, raw in sorted(_dict(facts.get("Containers")).items()):
        address = _parse_address(_str(_dict(raw).get("IPv6Address")).partition("/")[0])
        if isinstance(address, IPv6Address) and _ID.fullmatch(container_id):
            yield container_id, address


def _option_flag(
    options: dict[str, Any], key: str, warnings: list[str], default: bool = True
) -> bool:
    value = options.get(key)
    if value is None:
        return default
    flag = BOOLEANS.get(_str(value))
    if flag is not None:
        return flag
    in_force = str(default).lower()
    warnings.append(f"{key}={quoted(value)} is neither true nor false; {in_force} is in force")
    return default


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


def _option_address(
    options: dict[str, Any], key: str, warnings: list[str]
) -> IPv4Address | IPv6Address | None:
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
def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """The address; None if it is invalid or has a zone. Docker binds `::ffff:a.b.c.d` as IPv4.

    Cached, because all containers have the same few addresses in their bindings.
    """
    if text == "::":
        return ANY
    try:
        address = ip_address(text)
    except (ValueError, AddressValueError):
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id:
            return None
        return address.ipv4_mapped or address
    return address


def _ipv6_off(host_config: dict[str, Any]) -> bool:
    sysctls = _dict(host_config.get("Sysctls"))
    return sysctls.get("net.ipv6.conf.all.disable_ipv6") == "1"


def _endpoints(settings: dict[str, Any], ipv6_off: bool) -> Iterator[Endpoint]:
    for raw in _dict(settings.get("Networks")).values():
        facts = _dict(raw)
        network_id = _str(facts.get("NetworkID"))
        if not _ID.fullmatch(network_id):
            continue
        address = _parse_address(_str(facts.get("GlobalIPv6Address")))
        priority = facts.get("GwPriority")
        # Docker 20.10 may add a prefix length or use "<nil>". Only the presence is needed.
        gateway6 = _parse_address(_str(facts.get("IPv6Gateway")).partition("/")[0])
        yield Endpoint(
            network_id=intern(network_id),
            address=address if isinstance(address, IPv6Address) and not ipv6_off else None,
            has_gateway4=bool(_str(facts.get("Gateway"))),
            has_gateway6=isinstance(gateway6, IPv6Address) and not ipv6_off,
            gw_priority=priority if type(priority) is int else 0,
        )


def _listed_bindings(ports: list[Any], problems: list[tuple[str, str]]) -> Iterator[PortBinding]:
    for raw in ports:
        facts = _dict(raw)
        if "PublicPort" in facts or "IP" in facts:
            port = f"{facts.get('PrivatePort')}/{facts.get('Type')}"
            public = facts.get("PublicPort", 0)
            binding = _binding(port, facts.get("IP"), str(public or ""), problems)
            if binding is not None:
                yield binding


def _inspected_bindings(
    ports: dict[str, Any],
    host_config: dict[str, Any],
    engine: Engine,
    problems: list[tuple[str, str]],
) -> Iterator[PortBinding]:
    requested = _dict(host_config.get("PortBindings"))
    for port, raw in ports.items():
        bound = [
            binding
            for entry in _list(raw)
            if (binding := _inspected_binding(port, entry, _list(requested.get(port)), problems))
        ]
        yield from bound
        if engine.release < _IPV6_LISTED_SINCE:
            yield from _hidden_ipv6_bindings(bound)


def _inspected_binding(
    port: str, entry: object, requested: list[Any], problems: list[tuple[str, str]]
) -> PortBinding | None:
    facts = _dict(entry)
    binding = _binding(port, facts.get("HostIp"), facts.get("HostPort"), problems)
    if binding is None:
        return None
    addresses = {_parse_address(_str(_dict(request).get("HostIp"))) for request in requested}
    return replace(binding, explicit_address=binding.host_address in addresses)


def _hidden_ipv6_bindings(bound: list[PortBinding]) -> Iterator[PortBinding]:
    """The IPv6 side of IPv4 wildcard bindings, which engines before 20.10.6 do not list."""
    if any(isinstance(binding.host_address, IPv6Address) for binding in bound):
        return
    for binding in bound:
        if binding.host_address == IPv4Address(0) and not binding.explicit_address:
            yield replace(binding, host_address=None)


def _binding(
    port: str, host_ip: object, host_port: object, problems: list[tuple[str, str]]
) -> PortBinding | None:
    number, _, protocol = port.partition("/")
    has_address = host_ip not in ("", None)
    address = _parse_address(_str(host_ip)) if has_address else None
    where = port if re.fullmatch(r"[0-9]{1,5}/[a-z]{1,8}", port, re.ASCII) else quoted(port)
    if protocol not in tuple(Protocol) or not 1 <= _parse_port(number) <= 65535:
        problems.append((where, f"the engine lists a port that cannot be read: {quoted(port)}"))
    elif has_address and address is None:
        reason = f"the engine binds it to {quoted(host_ip)}, which is not an IP address"
        problems.append((where, reason))
    elif host_port not in ("", None) and not 1 <= _parse_port(host_port) <= 65535:
        problems.append((where, f"the engine lists {quoted(host_port)} as its host port"))
    else:
        return PortBinding(
            protocol=Protocol(protocol),
            container_port=_parse_port(number),
            host_address=address,
            host_port=max(_parse_port(host_port), 0),
        )
    return None


def _parse_port(value: object) -> int:
    text = _str(value)
    return int(text) if re.fullmatch(r"[0-9]{1,5}", text, re.ASCII) else -1
