"""`ula`: a random private prefix that overlaps no route of the host, and the lines for Docker that
use it.

RFC 4193: fd and 40 random bits. `free_prefix` and `subnets` are pure: the caller passes the random
bits and the routes.
"""

from __future__ import annotations

import json
import secrets
import subprocess
from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv6Network
from itertools import islice

from ipv6natd.ctl.client import EXIT_FAILED, DaemonClient, Options, Result
from ipv6natd.system import process

_ULA_BASE = 0xFD << 120
_GLOBAL_ID_BITS = 40
_MAX_SUBNETS = 1 << 16
_MAX_ATTEMPTS = 1000
_IP_TIMEOUT = 10.0

TEXT = """\
{prefix}

A random prefix that overlaps no route of this host. Keep it, and give each network one /64.

The default bridge: add this to /etc/docker/daemon.json, then `systemctl restart docker`:

  {daemon_json}

Other networks:

  docker network create --ipv6 --subnet {first} NAME
  docker network create --ipv6 --subnet {second} OTHER

In a compose file:

  networks:
    default:
      enable_ipv6: true
      ipam:
        config:
          - subnet: {third}
"""


async def make(_daemon: DaemonClient, _options: Options) -> Result:
    """The prefix, and the lines that use it."""
    routes = _routes()
    numbers = (secrets.randbits(40) for _ in range(_MAX_ATTEMPTS))
    try:
        prefix = free_prefix(numbers, route_destinations(routes or ()))
    except ValueError as error:
        note = f"{error}: ip -6 route show table all"
        return Result(value=None, text="", code=EXIT_FAILED, note=note)
    default, *others = map(str, islice(subnets(prefix), 4))
    settings = {"ipv6": True, "fixed-cidr-v6": default}
    lines = dict(zip(("first", "second", "third"), others, strict=True))
    return Result(
        value={"Prefix": str(prefix), "DaemonJson": settings, "Subnets": others},
        text=TEXT.format(prefix=prefix, daemon_json=json.dumps(settings), **lines),
        note=""
        if routes is not None
        else "cannot run `ip`: the routes of this host were not checked",
    )


def _routes() -> list[str] | None:
    """Destinations of all routes; None if `ip` is missing or fails."""
    path = process.which("ip")
    if path is None:
        return None
    try:
        words = ["-json", "-6", "route", "show", "table", "all"]
        done = process.run([path, *words], timeout=_IP_TIMEOUT)
        return [route["dst"] for route in json.loads(done.stdout or "[]")]
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
        return None


def free_prefix(numbers: Iterable[int], routes: Collection[IPv6Network]) -> IPv6Network:
    """The first /48 of these numbers, 40 bits each, that overlaps no route.

    Raises ValueError if there is none.
    """
    for number in numbers:
        if not 0 <= number < 1 << _GLOBAL_ID_BITS:
            raise ValueError(f"not {_GLOBAL_ID_BITS} bits: {number}")
        prefix = IPv6Network((_ULA_BASE | number << 80, 48))
        if not any(prefix.overlaps(route) for route in routes):
            return prefix
    raise ValueError("every prefix overlaps a route of this host")


def subnets(within: IPv6Network) -> Iterator[IPv6Network]:
    """Its /64 networks in order, one for each Docker network."""
    for number in range(_MAX_SUBNETS):
        yield IPv6Network((int(within.network_address) | number << 64, 64))


def route_destinations(words: Iterable[str]) -> frozenset[IPv6Network]:
    """Destinations in the output of `ip -json`; a default route takes no prefix."""
    destinations = set()
    for word in words:
        if word == "default":
            continue
        try:
            destinations.add(IPv6Network(word, strict=False))
        except ValueError:
            continue  # a newer `ip` may print other words
    return frozenset(network for network in destinations if network.prefixlen)
