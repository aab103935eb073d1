"""A booted host as these tests use it: the package, its service, and two containers.

`web` answers on port 80, which is published as 8080; `quiet` answers too, and publishes nothing.
Both come back with the engine, and both are there before the package is.
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
    """A booted host with something to do."""

    def furnish(self) -> None:
        """Containers, as they were before ipv6natd came."""
        if self.suite == "sid":
            # Its engine manages IPv6 itself, unless told not to; a boot takes away what it wrote.
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
        """A container on that network whose web server says whom it sees."""
        # Killed, since a web server that is a container's first process ends for nothing less.
        run = ("docker", "run", "--detach", f"--name={name}", "--network=net", "--stop-signal=KILL")
        self.run(*run, *args, IMAGE, "httpd", "-f", "-p", "80", "-h", "/www")

    def rules(self) -> list[str]:
        """All rules and chains of ip6tables, but for built-in chains, empty or not there at all."""
        lines = self.run("ip6tables-save").splitlines()
        return [line for line in lines if line[:2] == "-A" or (line[:1] == ":" and " - " in line)]

    def files(self) -> set[str]:
        """Every path that no package owns, but for what changes by itself."""
        volatile = "proc|sys|run|dev|lab|tmp|var/(log|cache|tmp|lib/(docker|apt|dpkg|systemd))"
        return set(
            self.sh(f"""
                cat /var/lib/dpkg/info/*.list | sort -u >/tmp/owned
                find / -xdev -regextype egrep -regex "/({volatile})/.*" -prune -o -print |
                    sort | comm -23 - /tmp/owned
            """).splitlines()
        )

    def install(self) -> None:
        """Install the package that lies in /lab as README says, and all that it pulls in."""
        # The engine has switched forwarding on, with the first network that has IPv6.
        self.sandbox.host.sysctl(FORWARDING, 0)
        apt = "DEBIAN_FRONTEND=noninteractive apt -y install /lab/ipv6natd_*.deb 2>&1"
        self.install_log = self.sh(f"{apt} && systemctl enable --now ipv6natd", timeout=180)

    def follow(self, example: str) -> None:
        """Do what the comment of a drop-in among the examples says."""
        text = self.run("cat", f"/usr/share/doc/ipv6natd/examples/{example}")
        self.sh(" && ".join(re.findall(r"^#     (.*)", text, re.MULTILINE)))

    def without(self, *paths: str) -> None:
        """The service as it was before something was put in place for it."""
        self.sh(f"rm -r {' '.join(paths)}; systemctl daemon-reload")
        self.restart()

    def fetch(self, port: int = PORT) -> Address | Failure:
        """Whom the web server saw when the client asked it."""
        return page(self.sandbox.client, HOST, port)

    def await_served(self, port: int = PORT) -> None:
        """Until the client is served, and seen as itself."""
        seen = harness.until(lambda: self.fetch(port), CLIENT, timeout=20)
        assert seen == CLIENT, f"{seen}\n{self.journal()}"

    def state(self, name: str = "State") -> str:
        """A property on the bus, as busctl prints it; its complaint where there is no bus."""
        return self.run("busctl", "get-property", *MANAGER, name, check=False).strip()

    def await_state(self, value: str, name: str = "State") -> None:
        said = harness.until(lambda: self.state(name), value, timeout=20)
        assert said == value, f"{said}\n{self.journal()}"

    def restart(self) -> None:
        """Restart the service, however often that was done before."""
        self.sh("systemctl reset-failed ipv6natd; systemctl restart ipv6natd")
        self.await_state('s "synced"')

    @contextmanager
    def load(self) -> Iterator[Callable[[], list[Address | Failure]]]:
        """Fetch over and over, by new connections; the call ends it and says what came of each."""
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
    """Whom a web server of ours saw, over a new connection."""
    try:
        with harness.connect(ns, address, port, timeout=timeout) as conversation:
            sock = conversation.socket
            sock.send(b"GET /cgi-bin/index.cgi HTTP/1.0\r\n\r\n")
            text = b"".join(iter(lambda: sock.recv(4096), b"")).decode()
    except OSError as error:
        return failure(error)
    said = [line.split()[1] for line in text.splitlines() if line.startswith("client ")]
    return plain(said[0].strip("[]")) if said else Failure.CLOSED
