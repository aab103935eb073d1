"""Docker's JSON -> Network | Container | Engine: the only place that knows Docker's field names.

Nothing an engine, a container or a label can say raises here. What cannot be identified is None;
what cannot be read keeps its default and leaves a warning or a problem behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from collections.abc import Mapping as Map
from dataclasses import replace
from functools import lru_cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address, IPv6Network, ip_address
from sys import intern
from typing import Any

from ipv6natd.model import (
    ANY,
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
_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_ID = re.compile(r"[A-Za-z0-9]{1,64}", re.ASCII)
# 20.10 before .6 did not list the IPv6 side of a wildcard binding at all.
_IPV6_LISTED_SINCE = (20, 10, 6)


def quoted(value: object, limit: int = 60) -> str:
    """A foreign value for a sentence: quoted, control characters escaped, bounded."""
    text = ascii(value) if isinstance(value, str) else ascii(str(value))
    return text if len(text) <= limit else f"{text[: limit - 4]}...'"


def engine(version: object, info: object, *, ip6tables: bool | None = None) -> Engine:
    """GET /version and GET /info -> Engine; what it was told of ip6tables no API tells."""
    security = [_str(each) for each in _list(_dict(info).get("SecurityOptions"))]
    return Engine(
        version=_text(_dict(version).get("Version")) or "unknown",
        api_version=_text(_dict(version).get("ApiVersion")),
        rootless=any("rootless" in each for each in security),
        experimental=_dict(info).get("ExperimentalBuild") is True,
        ip6tables=ip6tables,
    )


def network(raw: object) -> Network | None:
    """One network, from GET /networks or /networks/ID. None without an id to hold on to."""
    facts = _dict(raw)
    network_id = _str(facts.get("Id"))
    if not _ID.fullmatch(network_id):
        return None
    options = {_str(key): value for key, value in _dict(facts.get("Options")).items()}
    warnings: list[str] = []
    name = _text(facts.get("Name")) or network_id[:12]
    bridge = _str(options.get(f"{_BRIDGE}name")) or f"br-{network_id[:12]}"
    problem = ""
    if not is_plain_interface(bridge):
        problem = (
            f"its bridge name {quoted(bridge)} cannot stand in a rule; "
            "create the network with a name of at most 15 letters, digits, '.', '_' or '-'"
        )
        bridge = ""
    if facts.get("Ingress") is True:
        problem = (
            "ports that swarm publishes in ingress mode are left to Docker; "
            "publish them with mode=host to have them forwarded"
        )
    host_ipv6 = _option_address(options, "com.docker.network.host_ipv6", warnings)
    binding_ipv6 = _option_address(options, f"{_BRIDGE}host_binding_ipv6", warnings)
    return Network(
        id=network_id,
        name=name,
        driver=_text(facts.get("Driver")),
        bridge=bridge,
        enable_ipv6=facts.get("EnableIPv6") is True,
        subnets=tuple(_subnets(facts, warnings)),
        internal=facts.get("Internal") is True,
        icc=_option_flag(options, f"{_BRIDGE}enable_icc", warnings),
        masquerade=_option_flag(options, f"{_BRIDGE}enable_ip_masquerade", warnings),
        gateway_mode=_gateway_mode(options, warnings),
        host_binding_ipv4=_option_address(options, f"{_BRIDGE}host_binding_ipv4", warnings),
        host_binding_ipv6=_only_ipv6(binding_ipv6, f"{_BRIDGE}host_binding_ipv6", warnings),
        source_address=_only_ipv6(host_ipv6, "com.docker.network.host_ipv6", warnings),
        trusted_interfaces=tuple(_trusted_interfaces(options, warnings)),
        warnings=tuple(warnings),
        problem=problem,
        gateway_endpoints=tuple(_gateway_endpoints(facts, name)),
    )


def listed_network(raw: object, known: Map[str, Network]) -> Network | None:
    """One network of GET /networks, which does not tell who is on it: that stays as known."""
    listed = network(raw)
    before = known.get(listed.id) if listed else None
    if listed is None or before is None or listed.gateway_endpoints:
        return listed
    return replace(listed, gateway_endpoints=before.gateway_endpoints)


def container(raw: object, engine: Engine) -> Container | None:
    """One container, from its inspect or its row in the list. None when it is not running."""
    facts = _dict(raw)
    container_id = _str(facts.get("Id"))
    state = facts.get("State")
    # Inspect has an object with Running; the list has a word, and lists only what runs.
    running = state.get("Running") is True if isinstance(state, dict) else True
    if not _ID.fullmatch(container_id) or not running:
        return None
    names = [_text(each) for each in _list(facts.get("Names"))] or [_text(facts.get("Name"))]
    # A legacy link lists its alias "/app/db" beside the name "/db", in no certain order.
    name = next((each for each in names if "/" not in each[1:]), names[0])
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
    """Whether the list leaves something out that decides about this container.

    Engines before 28 list an IPv6 address even where a sysctl switches IPv6 off inside; later ones
    list none, and without their proxy no IPv6 binding either. Engines before 20.10.6 list no IPv6
    binding at all. Then the request itself has to be read, as it has where the network has a
    default for IPv6 bindings of its own: that goes for who named no address.
    """
    on = [networks[each.network_id] for each in listed.endpoints if each.network_id in networks]
    if engine.release < _IPV6_LISTED_SINCE or any(each.host_binding_ipv6 for each in on):
        return bool(listed.bindings)
    if engine.release < (28,):
        return any(isinstance(each.host_address, IPv6Address) for each in listed.bindings)
    without = {each.network_id for each in listed.endpoints if each.address is None}
    return any(each.enable_ipv6 and each.id in without for each in on) and any(
        each.host_address == IPv4Address(0) for each in listed.bindings
    )


def matches_inspect(listed: Container, known: Container | None) -> bool:
    """Whether the list tells nothing that an earlier inspect of the container did not know.

    An inspect may know better that an endpoint has no IPv6; everything else has to agree.
    """
    if known is None or (known.name, len(known.endpoints)) != (listed.name, len(listed.endpoints)):
        return False

    def told(container: Container) -> set[tuple[object, ...]]:
        bindings = container.bindings
        return {(b.protocol, b.container_port, b.host_address, b.host_port) for b in bindings}

    endpoints = zip(
        sorted(known.endpoints, key=lambda each: each.network_id),
        sorted(listed.endpoints, key=lambda each: each.network_id),
        strict=True,
    )
    return told(known) == told(listed) and all(
        mine.network_id == theirs.network_id and mine.address in (None, theirs.address)
        for mine, theirs in endpoints
    )


def on_gwbridge(container: Container, networks: Map[str, Network]) -> bool:
    """Whether the container publishes ports and may be a swarm task on docker_gwbridge."""
    on = [networks[each.network_id] for each in container.endpoints if each.network_id in networks]
    return bool(container.bindings) and not any(each.driver == "bridge" for each in on)


# What can change who is reached how. Health checks and exec alone would send an event a second.
EVENTS = {
    "type": ["container", "network"],
    "event": ["start", "die", "destroy", "rename", "connect", "disconnect", "create", "remove"],
}
_ENDS = frozenset({"die", "destroy", "disconnect", "remove"})
_CONTAINER_ACTIONS = frozenset({"start", "die", "destroy", "rename"})


def is_end(raw: object) -> bool:
    """Whether an event tells that something ended: an engine that is being stopped sends no other.

    >>> is_end({"Action": "die"})
    True
    """
    return _str(_dict(raw).get("Action")) in _ENDS


def event_subjects(raw: object) -> tuple[str, str]:
    """(container id, network id) that an event names; empty where it names none.

    `Type` and `Actor` stand in the events of every API version; `id` and `status` do not.
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
    """A name for people: bounded, and valid UTF-8 whatever the JSON escapes spelled."""
    return _str(value)[:255].encode("utf-8", "replace").decode()


def _subnets(facts: dict[str, Any], warnings: list[str]) -> Iterator[IPv6Network]:
    for each in _list(_dict(facts.get("IPAM")).get("Config")):
        subnet = _str(_dict(each).get("Subnet"))
        if ":" not in subnet:
            continue
        try:
            # Behind a "%" the library takes and keeps any text at all, line breaks too.
            yield IPv6Network(subnet if "%" not in subnet else "", strict=False)
        except ValueError:
            warnings.append(f"its subnet {quoted(subnet)} cannot be read and is left out")


def _gateway_endpoints(facts: dict[str, Any], name: str) -> Iterator[tuple[str, IPv6Address]]:
    """Swarm tasks on docker_gwbridge: their own inspect does not name the network."""
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
    if _str(value) in _TRUE:
        return True
    if _str(value) in _FALSE:
        return False
    kept = str(default).lower()
    warnings.append(f"{key}={quoted(value)} is neither true nor false; {kept} is in force")
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


def _only_ipv6(
    address: IPv4Address | IPv6Address | None, key: str, warnings: list[str]
) -> IPv6Address | None:
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
            warnings.append(f"{key} names {quoted(name)}, which is no interface name; left out")


@lru_cache(maxsize=256)
def _parse_address(text: str) -> IPv4Address | IPv6Address | None:
    """An address without a zone; `::ffff:a.b.c.d` is the IPv4 address that Docker binds for it.

    The same few stand in every container, and need not be read nor kept ten thousand times.
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
        # A 20.10 gateway may come with a prefix length or as "<nil>": only its presence counts.
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
    port: str, entry: object, asked: list[Any], problems: list[tuple[str, str]]
) -> PortBinding | None:
    facts = _dict(entry)
    binding = _binding(port, facts.get("HostIp"), facts.get("HostPort"), problems)
    if binding is None:
        return None
    named = {_parse_address(_str(_dict(each).get("HostIp"))) for each in asked}
    return PortBinding(
        protocol=binding.protocol,
        container_port=binding.container_port,
        host_address=binding.host_address,
        host_port=binding.host_port,
        explicit_address=binding.host_address in named,
    )


def _hidden_ipv6_bindings(bound: list[PortBinding]) -> Iterator[PortBinding]:
    """The IPv6 side of wildcard IPv4 bindings, on engines that hide it."""
    if any(isinstance(each.host_address, IPv6Address) for each in bound):
        return
    for each in bound:
        if each.host_address == IPv4Address(0) and not each.explicit_address:
            yield PortBinding(
                protocol=each.protocol,
                container_port=each.container_port,
                host_address=None,
                host_port=each.host_port,
                explicit_address=False,
            )


def _binding(
    port: str, host_ip: object, host_port: object, problems: list[tuple[str, str]]
) -> PortBinding | None:
    number, _, protocol = port.partition("/")
    named = host_ip not in ("", None)
    address = _parse_address(_str(host_ip)) if named else None
    where = port if re.fullmatch(r"[0-9]{1,5}/[a-z]{1,8}", port, re.ASCII) else quoted(port)
    if protocol not in tuple(Protocol) or not 1 <= _parse_port(number) <= 65535:
        problems.append((where, f"the engine names a port that cannot be read: {quoted(port)}"))
    elif named and address is None:
        reason = f"the engine binds it to {quoted(host_ip)}, which is not an IP address"
        problems.append((where, reason))
    elif host_port not in ("", None) and not 1 <= _parse_port(host_port) <= 65535:
        problems.append((where, f"the engine gives {quoted(host_port)} as its host port"))
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
