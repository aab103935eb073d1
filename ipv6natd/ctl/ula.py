"""`ula`: a random private prefix that overlaps no route of the host, and the lines for Docker that
use it.

RFC 4193: fd and 40 random bits.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable
from contextlib import suppress
from ipaddress import IPv6Network
from itertools import islice

from ipv6natd.ctl.client import EXIT_FAILED, DaemonClient, Options, Result
from ipv6natd.host.facts import ip_json_rows
from ipv6natd.system.process import output_of

_MAX_ATTEMPTS = 1000
_IP_TIMEOUT = 10.0
_NOT_CHECKED = "cannot run `ip`: the routes of this host were not checked"

TEXT = """\
{prefix}

A random prefix that overlaps no route of this host. Keep it, and give each network one /64.

The default bridge: add this to /etc/docker/daemon.json, then `systemctl restart docker`:

  {daemon_json}

Other networks:

  docker network create --ipv6 --subnet {others[0]} NAME
  docker network create --ipv6 --subnet {others[1]} OTHER

In a compose file:

  networks:
    default:
      enable_ipv6: true
      ipam:
        config:
          - subnet: {others[2]}
"""


async def make(_daemon: DaemonClient, _options: Options) -> Result:
    """The prefix, and the lines that use it."""
    routes = _routes()
    numbers = (secrets.randbits(40) for _ in range(_MAX_ATTEMPTS))
    prefix = free_prefix(numbers, routes or ())
    if prefix is None:
        note = "every prefix overlaps a route of this host: ip -6 route show table all"
        return Result(code=EXIT_FAILED, note=note)
    default, *others = map(str, islice(prefix.subnets(new_prefix=64), 4))
    settings = {"ipv6": True, "fixed-cidr-v6": default}
    return Result(
        value={"Prefix": str(prefix), "DaemonJson": settings, "Subnets": others},
        text=TEXT.format(prefix=prefix, daemon_json=json.dumps(settings), others=others),
        note="" if routes is not None else _NOT_CHECKED,
    )


def _routes() -> list[IPv6Network] | None:
    """Destinations of all routes but the default route; None if `ip` is missing or fails."""
    words = ("-json", "-6", "route", "show", "table", "all")
    text = output_of("ip", *words, timeout=_IP_TIMEOUT)
    if not text:
        return None
    destinations = []
    for row in ip_json_rows(text):
        with suppress(ValueError):  # "default", and the words of a newer `ip`
            destinations.append(IPv6Network(str(row.get("dst")), strict=False))
    return [network for network in destinations if network.prefixlen]


def free_prefix(numbers: Iterable[int], routes: Collection[IPv6Network]) -> IPv6Network | None:
    """The first /48 of these numbers, 40 bits each, that overlaps no route; None without one."""
    for number in numbers:
        prefix = IPv6Network((0xFD << 120 | number << 80, 48))
        if not any(prefix.overlaps(route) for route in routes):
            return prefix
    return None
