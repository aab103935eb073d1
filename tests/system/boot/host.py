"""A booted host with the package, its service, and two containers.

`web` answers on port 80, published as 8080; `quiet` also answers, and publishes no port.
Both restart with the engine, and both exist before the package is installed.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv6Address

from tests import harness
from tests.harness.booted import Booted
from tests.harness.engine import IMAGE
from tests.harness.namespace import Namespace
from tests.harness.probe import Address, Failure, failure
from tests.harness.sandbox import CLIENT, HOST
from tests.harness.serve import plain

PORT = 8080
WEB = IPv6Address("fd00:a::8080")
QUIET = IPv6Address("fd00:a::80")
FORWARDING = "net.ipv6.conf.all.forwarding"
MANAGER = ("org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager")


class Host(Booted):
    """A booted host with containers."""

    def furnish(self) -> None:
        """Create the containers that exist before ipv6natd is installed."""
        if self.suite == "sid":
            # This engine manages IPv6 by default. The reboot removes the rules that it wrote.
            told = """echo '{"ip6tables": false}' >/etc/docker/daemon.json"""
            self.sh(f"{told}; systemctl reboot")
            self.await_off()
            self.plug()
            self.boot()
        self.run("docker", "import", "/lab/image.tar", IMAGE)
        self.run("docker", "network", "create", "--ipv6", "--subnet=fd00:a::/64", "net")
        self.start("web", f"--ip6={WEB}", f"--publish={PORT}:80", "--restart=always")
        self.start("quiet", f"--ip6={QUIET}", "--restart=always")
        self.rules_before = self.rules()

    def start(self, name: str, *args: str) -> None:
        """Start a container on the network, with a web server that shows its client's address."""
        # The web server is the first process of its container, and only SIGKILL ends it.
        run = ("docker", "run", "--detach", f"--name={name}", "--network=net", "--stop-signal=KILL")
        self.run(*run, *args, IMAGE, "httpd", "-f", "-p", "80", "-h", "/www")

    def rules(self) -> list[str]:
        """All rules and chains of ip6tables, without the built-in chains."""
        lines = self.run("ip6tables-save").splitlines()
        return [line for line in lines if line[:2] == "-A" or (line[:1] == ":" and " - " in line)]

    def files(self) -> set[str]:
        """Each path that no package owns, without volatile folders."""
        volatile = "proc|sys|run|dev|lab|tmp|var/(log|cache|tmp|lib/(docker|apt|dpkg|systemd))"
        return set(
            self.sh(f"""
                cat /var/lib/dpkg/info/*.list | sort -u >/tmp/owned
                find / -xdev -regextype egrep -regex "/({volatile})/.*" -prune -o -print |
                    sort | comm -23 - /tmp/owned
            """).splitlines()
        )

    def install(self) -> None:
        """Install the package in /lab with its dependencies, as described in README."""
        # The engine has enabled forwarding with its first IPv6 network.
        self.sandbox.host.sysctl(FORWARDING, 0)
        apt = "DEBIAN_FRONTEND=noninteractive apt -y install /lab/ipv6natd_*.deb 2>&1"
        self.install_log = self.sh(f"{apt} && systemctl enable --now ipv6natd", timeout=180)

    def follow(self, example: str) -> None:
        """Run the commands in the comment of an example drop-in."""
        text = self.run("cat", f"/usr/share/doc/ipv6natd/examples/{example}")
        self.sh(" && ".join(re.findall(r"^#     (.*)", text, re.MULTILINE)))

    def without(self, *paths: str) -> None:
        """Remove these files and restart the service."""
        self.sh(f"rm -r {' '.join(paths)}; systemctl daemon-reload")
        self.restart()

    def fetch(self, port: int = PORT) -> Address | Failure:
        """The client's address as the web server saw it."""
        return page(self.sandbox.client, HOST, port)

    def await_served(self, port: int = PORT) -> None:
        """Wait until the web server answers and sees the client's own address."""
        seen = harness.until(lambda: self.fetch(port), CLIENT, timeout=20)
        assert seen == CLIENT, f"{seen}\n{self.journal()}"

    def state(self, name: str = "State") -> str:
        """A property on the bus, or the error, as busctl prints it."""
        return self.run("busctl", "get-property", *MANAGER, name, check=False).strip()

    def await_state(self, value: str, name: str = "State") -> None:
        said = harness.until(lambda: self.state(name), value, timeout=20)
        assert said == value, f"{said}\n{self.journal()}"

    def restart(self) -> None:
        """Restart the service, and reset its start limit."""
        self.sh("systemctl reset-failed ipv6natd; systemctl restart ipv6natd")
        self.await_state('s "synced"')

    def upgrade(self, install: Callable[[], object]) -> None:
        """Upgrade the package to the newer one, and check that no connection is lost meanwhile."""
        with self.load() as end:
            install()
            self.await_state('s "synced"')
        seen = end()
        assert set(seen) == {CLIENT}
        assert len(seen) > 20
        version = self.run("dpkg-query", "--show", "--showformat=${Version}", "ipv6natd")
        assert version.endswith("+newer")

    @contextmanager
    def load(self) -> Iterator[Callable[[], list[Address | Failure]]]:
        """Fetch repeatedly with new connections; the call stops and returns all results."""
        seen: list[Address | Failure] = []
        stop = threading.Event()

        def body() -> None:
            while not stop.wait(0.005):
                seen.append(self.fetch())

        thread = threading.Thread(target=body, daemon=True)

        def end() -> list[Address | Failure]:
            stop.set()
            thread.join()
            return seen

        thread.start()
        try:
            yield end
        finally:
            end()


def page(ns: Namespace, address: Address, port: int, *, timeout: float = 1) -> Address | Failure:
    """The client's address as the web server saw it, over a new connection."""
    try:
        with harness.connect(ns, address, port, timeout=timeout) as conversation:
            sock = conversation.socket
            sock.send(b"GET /cgi-bin/index.cgi HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: sock.recv(4096), b"")).decode()
    except OSError as error:
        return failure(error)
    said = [line.split()[1] for line in text.splitlines() if line.startswith("client ")]
    return plain(said[0].strip("[]")) if said else Failure.CLOSED
