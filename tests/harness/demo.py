"""`make demo`: shows ipv6natd with a real engine in a sandbox.

The demo needs only the packages, and does not change the machine's network, firewall, bus or
Docker. The exit status is 0 only if the client got the page and the container saw the client's
address.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import textwrap
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import FrameType

from tests.harness.bus import Bus
from tests.harness.daemon import Daemon
from tests.harness.engine import Engine
from tests.harness.probe import connect, until
from tests.harness.process import LabError
from tests.harness.sandbox import CLIENT, HOST, Sandbox
from tests.harness.tour import Tour

PAGE = "/cgi-bin/index.cgi"
SERVE = ("httpd", "-f", "-p", "80", "-h", "/www")
MANAGER = ("org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager")


class Interrupted(Exception):
    """A signal arrived; the sandbox is removed before the exit."""


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    began = time.monotonic()
    parser = argparse.ArgumentParser(
        prog="tests.harness.demo", description="Show ipv6natd at work."
    )
    parser.add_argument("--tour", type=Path, help="write commands and output to this file")
    page = parser.parse_args().tour
    try:
        seen = show(page)
    except Interrupted as error:
        print(f"\nDEMO INTERRUPTED by {error}; the sandbox is removed.")
        return 130
    except (LabError, OSError, subprocess.SubprocessError) as error:
        print(f"\n{error}\n\nDEMO FAILED; the sandbox is removed.")
        return 1
    took = f"{time.monotonic() - began:.1f} s"
    if seen != str(CLIENT):
        print(f"\nDEMO FAILED: the container saw {seen or 'no client'}, not {CLIENT} ({took}).")
        return 1
    print(f"\nDEMO OK: the container saw the client's address, {CLIENT} ({took}).")
    return 0


def show(page: Path | None) -> str:
    """Run the demo; returns the client address that the container saw."""
    step("A sandbox of network namespaces: a host, and a client on the same link")
    with Sandbox() as sandbox:
        print(f"    host   {HOST}\n    client {CLIENT}")

        step("A Docker engine on the host, without IPv6 NAT")
        with Engine(sandbox) as engine, Bus(sandbox.dir) as bus:
            print(f"    Docker {engine.docker('version', '--format', '{{.Server.Version}}')}")

            step("ipv6natd on the host, and a private system bus for it")
            with Daemon(sandbox, engine.endpoint, bus=bus.address, backend="auto") as daemon:
                print(f"    {daemon.status}")
                seen = show_container(sandbox, engine, bus)
                tour = Tour(sandbox, engine, bus, daemon)
                tour.walk()
                if page is not None:
                    page.write_text(tour.text)
                show_without(sandbox, daemon)
                return seen


def show_container(sandbox: Sandbox, engine: Engine, bus: Bus) -> str:
    step("A network with private (ULA) IPv6 addresses, and a web server that publishes its port")
    print("    $ docker network create --ipv6 --subnet fd00:a::/64 web")
    engine.network("web", "fd00:a::/64")
    print("    $ docker run -p 8080:80 --network web --name hello ...")
    container = engine.run("hello", "web", "--hostname=hello", publish=["8080:80"], cmd=SERVE)
    print(f"    its address: {container.address}, to which the client has no route")
    until(lambda: bus.busctl("get-property", *MANAGER, "MappingCount"), "u 1", timeout=10)

    step("The client fetches from the host's address")
    print(f"    GET http://[{HOST}]:8080{PAGE}")
    page = fetch(sandbox)
    show_text(page)
    found = re.fullmatch(r"hello from hello\nclient \[?([0-9a-f:]+)\]?\n", page)
    seen = found[1] if found else ""

    step("The mapping on the bus")
    print(f"    $ busctl call {' '.join(MANAGER)} ListMappings")
    show_text(bus.busctl("call", *MANAGER, "ListMappings"))

    step("The rules of ipv6natd")
    print("    $ ip6tables-save")
    show_text(sandbox.rules())

    return seen


def show_without(sandbox: Sandbox, daemon: Daemon) -> None:
    step("For comparison, without ipv6natd: the rules are removed, and Docker's proxy answers")
    daemon.stop()
    print("    $ ipv6natd -flush")
    daemon.flush()
    show_text(fetch(sandbox))


def fetch(sandbox: Sandbox) -> str:
    """The page, over a new connection from the client; retries while the server starts."""
    deadline = time.monotonic() + 5
    while True:
        try:
            with connect(sandbox.client, HOST, 8080, timeout=3) as conversation:
                http = HTTPConnection(f"[{HOST}]", 8080)
                http.sock = conversation.socket
                http.request("GET", PAGE)
                return http.getresponse().read().decode()
        except (OSError, HTTPException) as error:
            if time.monotonic() > deadline:
                return f"no page: {error!r}"
        time.sleep(0.05)


def step(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def show_text(text: str) -> None:
    print(textwrap.indent(text.rstrip(), "    "))


def interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main())
