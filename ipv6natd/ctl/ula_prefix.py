"""`ula`: a random private prefix, and the lines that put Docker on it."""

from __future__ import annotations

import json
import secrets
import subprocess
from itertools import islice

from ipv6natd.ctl import ula
from ipv6natd.ctl.client import FAILED, Answer, Daemon, How
from ipv6natd.system import process as tools

_TRIES = 1000
_TIMEOUT = 10.0

TEXT = """\
{prefix}

This prefix is yours: random, and in no route of this host. Keep it, and give each network one /64.

The default bridge, in /etc/docker/daemon.json beside what stands there,
then `systemctl restart docker`:

  {daemon_json}

Networks of your own:

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


async def make(_daemon: Daemon, _how: How) -> Answer:
    """The prefix and the lines."""
    routes = _routes()
    numbers = (secrets.randbits(40) for _ in range(_TRIES))
    try:
        found = ula.prefix(numbers, ula.routed(routes or ()))
    except ValueError as error:
        note = f"{error}: ip -6 route show table all"
        return Answer(value=None, text="", code=FAILED, note=note)
    default, *others = map(str, islice(ula.subnets(found), 4))
    settings = {"ipv6": True, "fixed-cidr-v6": default}
    lines = dict(zip(("first", "second", "third"), others, strict=True))
    return Answer(
        value={"Prefix": str(found), "DaemonJson": settings, "Subnets": others},
        text=TEXT.format(prefix=found, daemon_json=json.dumps(settings), **lines),
        note="" if routes is not None else "no `ip` here: the routes of this host were not seen",
    )


def _routes() -> list[str] | None:
    """Destinations of all routes; None where nothing tells them."""
    path = tools.find("ip")
    if path is None:
        return None
    try:
        words = ["-json", "-6", "route", "show", "table", "all"]
        done = tools.call([path, *words], timeout=_TIMEOUT)
        return [each["dst"] for each in json.loads(done.stdout or "[]")]
    except (OSError, ValueError, KeyError, TypeError, subprocess.TimeoutExpired):
        return None
