"""The tour: every command of ipv6natctl with a real engine, on the terminal and for docs/tour.md.

Values that differ between runs are replaced by fixed ones, so the page changes only with the code.
"""

from __future__ import annotations

import json
import re
import shlex
import textwrap
from collections.abc import Callable
from ipaddress import IPv6Network

from ipv6natd import __version__
from tests.harness.bus import Bus
from tests.harness.daemon import Daemon
from tests.harness.engine import Engine
from tests.harness.probe import until
from tests.harness.sandbox import CLIENT, Sandbox

INTRODUCTION = """\
# A tour

Every command of `ipv6natctl` with its output, with a real Docker engine. `make demo` shows the
same. `UPDATE_DOCS=1 .venv/bin/pytest tests/system/packets/test_demo.py` writes this page, and a
test fails if the output of a command differs. Ids, times and counts are replaced by fixed ones.

The host has a network `web`, created by `docker network create --ipv6 --subnet fd00:a::/64 web`. A
web server runs on this network, started by `docker run -p 8080:80 --network web --name hello ...`.
"""

PREFIX = 0xFD123456789A << 80
MOMENT = "2026-11-23 12:00:00+00:00"


class Tour:
    """Runs all commands once; afterwards `text` is the page."""

    def __init__(self, sandbox: Sandbox, engine: Engine, bus: Bus, daemon: Daemon) -> None:
        self._sandbox, self._engine, self._bus, self._daemon = sandbox, engine, bus, daemon
        self._parts = [INTRODUCTION]
        self._ids: dict[str, str] = {}

    @property
    def text(self) -> str:
        return "\n".join(self._parts)

    def walk(self) -> None:
        """Run all steps. The host is unchanged afterwards."""
        self._look()
        self._ask_why()
        self._watch()
        self._repair()
        self._steer()
        self._set_up()

    def _look(self) -> None:
        self._step("The state", "Exit status 0 means that all is well, for scripts.")
        self._ctl()
        self._step("Forwarded ports")
        self._ctl("mappings")
        self._say("The same for programs, and with a filter:")
        self._ctl("mappings", "--port", "8080", "--json=pretty")
        self._step("Networks")
        self._ctl("networks")

    def _ask_why(self) -> None:
        self._step(
            "Ports and networks that are not forwarded",
            "A network with public addresses, and a port that is bound to an IPv4 address:",
        )
        self._docker("network", "create", "--ipv6", "--subnet", "2001:db8:99::/64", "public")
        self._engine.network("public", "2001:db8:99::/64")
        self._docker(
            "run", "-p", "127.0.0.1:6379:6379", "--network", "web", "--name", "cache", "..."
        )
        self._engine.run("cache", "web", publish=["127.0.0.1:6379:6379"])
        self._settled("skipped", "public")
        self._ctl("skipped")
        self._step("The reason for one container or port")
        self._ctl("explain", "hello")
        self._say("A packet from an address, through the rules in force:")
        self._ctl("explain", "8080", "--from", str(CLIENT))
        self._say("The same for a port of the host:")
        self._ctl("explain", "6379/tcp")
        # With the public network the check below would report an open router.
        self._engine.rm("cache")
        self._engine.docker("network", "rm", "public")
        self._daemon.ctl("resync")

    def _watch(self) -> None:
        self._step("Connections", "On a terminal the list is live, with rates and changes.")
        self._ctl("top")
        self._step(
            "Changes",
            "Meanwhile a container starts and stops, and another program flushes the nat table.",
        )
        acts: tuple[Callable[[], object], ...] = (
            lambda: self._engine.run("shop", "web", publish=["8443:443"]),
            lambda: self._engine.rm("shop"),
            lambda: self._sandbox.host.run("ip6tables", "-t", "nat", "-F"),
        )
        with self._daemon.watching("monitor") as lines:
            shown = [next(lines)]
            for act in acts:
                act()
                shown.append(next(lines))
        self._show("$ ipv6natctl monitor", "".join(shown))

    def _repair(self) -> None:
        self._step(
            "Problems of the host",
            "Each problem has a command that solves it. Here forwarding is disabled:",
        )
        self._sandbox.host.sysctl("net.ipv6.conf.all.forwarding", 0)
        self._settled("findings", "forwarding is off")
        self._ctl("findings")
        self._say("`check` shows the same, and what is correct. It also works without the daemon.")
        self._show("$ ipv6natctl check | grep ^bad", self._bad())
        self._sandbox.host.sysctl("net.ipv6.conf.all.forwarding", 1)

    def _bad(self) -> str:
        lines = self._daemon.ctl("check", check=False).splitlines()
        return "\n".join(
            line for line in lines if line.startswith("bad") and "ipv6natd " not in line
        )

    def _steer(self) -> None:
        self._step("Compare all rules now, and read the settings again")
        self._daemon.ctl("resync")
        self._ctl("resync")
        self._ctl("reload")
        self._step("The rules in force")
        self._ctl("rules")
        self._step("Remove and restore all rules", "Only `resync` or a restart restores them.")
        self._ctl("cleanup")
        self._show("$ ip6tables -t nat -S | grep -c IPV6NAT", f"{self._count()}")
        self._ctl("resync")

    def _count(self) -> int:
        return self._sandbox.host.run("ip6tables", "-t", "nat", "-S").count("IPV6NAT")

    def _set_up(self) -> None:
        self._step("Metrics for Prometheus")
        self._ctl("metrics")
        self._step(
            "A bug report",
            "Names of containers and networks, and public addresses, are others in it.",
        )
        report = json.loads(self._daemon.ctl("report"))
        self._show("$ ipv6natctl report | jq --compact-output keys", json.dumps(sorted(report)))
        rules = "\n".join(report["Rules"].splitlines()[-4:])
        self._show("$ ipv6natctl report | jq --raw-output .Rules | tail --lines=4", rules)
        self._step("A new ULA prefix")
        self._ctl("ula")
        self._step("The state on the bus")
        words = ("org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager")
        self._show(
            f"$ busctl get-property {' '.join(words)} State MappingCount",
            self._bus.busctl("get-property", *words, "State", "MappingCount"),
        )

    def _settled(self, what: str, word: str) -> None:
        until(lambda: word in self._daemon.ctl(what, check=False), True, timeout=10)

    def _step(self, title: str, about: str = "") -> None:
        print(f"\n=== {title}", flush=True)
        self._parts.append(f"## {title}\n")
        self._say(about)

    def _say(self, about: str) -> None:
        if about:
            print(f"    {about}")
            self._parts.append("\n".join(textwrap.wrap(about, 100)) + "\n")

    def _docker(self, *words: str) -> None:
        self._show(f"$ docker {' '.join(words)}", "")

    def _ctl(self, *words: str) -> None:
        self._show(f"$ {shlex.join(('ipv6natctl', *words))}", self._daemon.ctl(*words, check=False))

    def _show(self, command: str, output: str) -> None:
        print(textwrap.indent(f"{command}\n{output}".rstrip(), "    "), flush=True)
        lines = [command, *self._formed(output).rstrip().splitlines()]
        self._parts.append("\n".join(["```", *lines, "```", ""]))

    def _formed(self, text: str) -> str:
        """The text with fixed values for everything that differs between runs."""
        text = re.sub(r"\b[0-9a-f]{64}\b", lambda hit: self._id(hit[0]), text)
        text = re.sub(r"\(([0-9a-f]{12})\)", lambda hit: f"({self._id(hit[1])[:12]})", text)
        text = re.sub(r"\d{4}-\S+ \d\d:\d\d:\d\d\S+ \(\d+ s ago\)", f"{MOMENT} (5 s ago)", text)
        text = re.sub(r"^\d\d:\d\d:\d\d ", "12:00:00 ", text, flags=re.MULTILINE)
        text = re.sub(r"\b\d+ ms\b", "5 ms", text)
        text = re.sub(r'("Since": )\d+', r"\g<1>1795435200000000", text)
        text = re.sub(r"(timestamp_seconds )[\d.]+$", r"\g<1>1795435200", text, flags=re.MULTILINE)
        text = re.sub(r"(changes_total )\d+$", r"\g<1>7", text, flags=re.MULTILINE)
        text = re.sub(
            r"^(-    )(\d+)", lambda hit: hit[1] + "1".ljust(len(hit[2])), text, flags=re.MULTILINE
        )
        text = re.sub(r"(forwarded )(\d+)", lambda hit: hit[1] + "1".ljust(len(hit[2])), text)
        text = re.sub(r"\bfd[0-9a-f:]+::/(?:48|64)", _own_prefix, text)
        text = re.sub(re.escape(self._engine.version) + r"[^\s\";]*", "20.10.24", text)
        return re.sub(rf'(ipv6natd: |{{version="){re.escape(__version__)}', r"\g<1>VERSION", text)

    def _id(self, found: str) -> str:
        """A fixed id for an id: ones for the first, twos for the second, ..."""
        for known, form in self._ids.items():
            if known.startswith(found):
                return form
        return self._ids.setdefault(found, f"{len(self._ids) + 1:x}" * 64)


def _own_prefix(hit: re.Match[str]) -> str:
    """fd12:3456:789a::/48 for a random prefix, and its networks for the prefix's networks."""
    network = IPv6Network(hit[0])
    if network.subnet_of(IPv6Network("fd00::/16")):
        return hit[0]  # the fixed networks of the tour
    inside = int(network.network_address) & (0xFFFF << 64)
    return str(IPv6Network((PREFIX | inside, network.prefixlen)))
