"""A real Docker engine in the host's network namespace, separate from the machine's engine.

dockerd, its containerd and every container live in one process namespace and one mount namespace.
The first process of the process namespace is ours. When it is killed, the kernel kills all other
processes and removes their mounts, so nothing remains after a crash.

Facts about 20.10.24 on which the tests depend:
- dockerd needs cgroups below /sys/fs/cgroup; `ip netns exec` mounts another /sys without them.
- dockerd does not set net.bridge.bridge-nf-call-… in its namespace while inter-container
  communication is enabled. These sysctls are 1 because the kernel's default is 1 in a new
  namespace. Without `modprobe` dockerd only logs warnings; netfilter is loaded or built in.
- dockerd enables IPv4 forwarding at its start, and IPv6 forwarding with the first IPv6 network.
- Without the userland proxy dockerd itself listens on each published port, so an established
  connection proves nothing.
- After SIGKILL containerd ends too, and shims and containers continue.

An engine of another Debian suite runs in the same way, with a tree (tests/harness/tree.py) as its
root. An overlay keeps the tree unchanged. The lab's folder has the same path in this root. The
docker command comes from the tree too: an older command would use an older API version, and the
engine would answer in this version.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.harness import tree
from tests.harness.namespace import Namespace
from tests.harness.process import LabError, environment, run, spawn, tail, undisturbed
from tests.harness.sandbox import Sandbox
from tests.harness.serve import Server

IMAGE = "lab:1"
APPLETS = ("sh", "sleep", "httpd", "wget", "nc", "ip", "ping", "echo", "cat")
PAGE = """#!/bin/sh
echo "Content-Type: text/plain"
echo
echo "hello from $(cat /etc/hostname)"
echo "client $REMOTE_ADDR"
"""
"""The page of the image's web server, with the address of its client."""

HOLDER = """
set -e
mount -t tmpfs tmpfs /run                # own sockets, plugins and lock files
mkdir -p /etc/docker
mount -t tmpfs tmpfs /etc/docker         # own key, without the machine's daemon.json
mount -t tmpfs tmpfs "$1/data"           # overlay2 works there on any machine
if ! grep -q ' /sys/fs/cgroup' /proc/self/mountinfo; then
    if grep -q '^[1-9]' /proc/1/cgroup; then
        mount -t tmpfs tmpfs /sys/fs/cgroup
        sed -n 's/^[1-9][0-9]*:\\([^:]*\\):.*/\\1/p' /proc/1/cgroup | while read -r name; do
            mkdir "/sys/fs/cgroup/${name#name=}"
            mount -t cgroup -o "$name" cgroup "/sys/fs/cgroup/${name#name=}"
        done
    else
        mount -t cgroup2 cgroup2 /sys/fs/cgroup
    fi
fi
cd /
if [ -n "$2" ]; then                     # an engine of another suite, with its tree as root
    mkdir -p /run/tree/upper /run/tree/work /run/tree/root
    # Writes stay in the upper layer. Docker 28 remounts /, so the root must be a mount.
    layers="lowerdir=$2,upperdir=/run/tree/upper,workdir=/run/tree/work"
    mount -t overlay -o "$layers" overlay /run/tree/root
    cd /run/tree/root
    mount -t proc proc proc
    mount --rbind /sys sys
    mount --rbind /dev dev
    mount -t tmpfs tmpfs run
    mkdir -p "./$3"
    mount --rbind "$3" "./$3"
fi
exec chroot . sh -c '
    echo ready
    sleep infinity &
    wait                                 # reaps orphans: dockerd would wait for the zombie of its
'                                        # containerd, which looks like a running process
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network of the engine."""

    name: str
    id: str
    bridge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container and its facts after the start."""

    name: str
    id: str
    ns: Namespace
    address: IPv6Address | None
    """Its global address on the network of its start, or None."""
    facts: Any
    """The inspect."""
    server: Server = field(default_factory=lambda: Server("none"))
    """The server in its namespace, if the test's process runs one."""

    def port(self, port: str = "80/tcp", *, family: int = 6) -> int:
        """The host port of a container port, for one address family."""
        for binding in self.facts["NetworkSettings"]["Ports"][port] or ():
            if (":" in binding["HostIp"]) == (family == 6):
                return int(binding["HostPort"])
        raise LabError(f"{self.name} publishes {port} on no IPv{family} address")


class Engine:
    """dockerd with its own containerd; the context manager starts and removes both.

    The program is the machine's or that of another suite, whose tree must exist. `args` are
    additional flags. With `ip6tables` the engine writes IPv6 rules itself; None leaves it to the
    engine's default.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *args: str,
        userland_proxy: bool = True,
        suite: tree.Suite | None = None,
        ip6tables: bool | None = False,
    ) -> None:
        self.sandbox = sandbox
        self.dir = sandbox.dir / "engine"
        self.socket = self.dir / "docker.sock"
        self.endpoint = f"unix://{self.socket}"
        self.args = args
        self.userland_proxy = userland_proxy
        self.suite = suite
        self.ip6tables = ip6tables
        self._stack = ExitStack()
        self._holder = 0
        self._dockerd: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        (self.dir / "data").mkdir(parents=True)
        with ExitStack() as stack:
            root = None if self.suite is None else tree.path(self.suite)
            self._holder = stack.enter_context(holder(self.sandbox, self.dir, root))
            stack.callback(self.kill)
            self.start()
            self._import()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with undisturbed():
            self._stack.close()

    def start(self, *args: str) -> None:
        """Start dockerd, with these additional flags, and wait until it answers."""
        self._spawn("dockerd", f"--host={self.endpoint}", *args)
        self.await_answer()

    def start_on_demand(self) -> None:
        """Listen on the engine's socket, and start dockerd at the first connection.

        systemd does the same with an active docker.socket. `running` is true after the start.
        """
        listen = ("systemd-socket-activate", f"--listen={self.socket}")
        self._spawn(*listen, "dockerd", "--host=fd://")
        deadline = time.monotonic() + 10
        while not self.socket.exists():
            if time.monotonic() > deadline:
                raise LabError(f"no listener on the engine's socket:\n{tail(self._log)}")
            time.sleep(0.005)

    @cached_property
    def version(self) -> str:
        """The version of the program, such as "20.10.24". The engine need not run."""
        text = run(*self._inside, "dockerd", "--version")
        found = re.search(r"version ([0-9.]*[0-9])", text)
        if found is None:
            raise LabError(f"an engine without a version: {text}")
        return found[1]

    @property
    def release(self) -> tuple[int, int]:
        """The version for comparisons, such as (20, 10)."""
        major, minor, *_ = map(int, self.version.split("."))
        return major, minor

    @property
    def running(self) -> bool:
        """True if dockerd has started and was not stopped."""
        return self._pidfile.exists()

    def await_answer(self) -> None:
        """Wait until the engine answers. The request starts an engine that starts on demand."""
        self._await(lambda: self.docker("version", check=False), "Server:")

    def _spawn(self, *argv: str) -> None:
        flags = [
            f"--data-root={self.dir}/data",
            f"--exec-root={self.dir}/exec",
            f"--pidfile={self._pidfile}",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--cgroup-parent=/{self.sandbox.name}",
            f"--userland-proxy={str(self.userland_proxy).lower()}",
        ]
        if self.ip6tables is not None:
            flags.append(f"--ip6tables={str(self.ip6tables).lower()}")
        if self.ip6tables and self.release < (27, 0):
            flags.append("--experimental")
        with self._log.open("ab") as log:
            self._dockerd = spawn(
                [
                    *self._inside,
                    *argv,
                    *flags,
                    *self.args,
                ],
                log=log,
                # dockerd reads this variable and then uses no AppArmor. A profile would be loaded
                # into the machine's kernel and stay there.
                env={"PATH": self.sandbox.path, "container": "lab", "TMPDIR": str(self.dir)},
            )

    def stop(self) -> None:
        """Stop dockerd as systemd does. Containers end, except with --live-restore."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill dockerd. Containers continue."""
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        """Stop dockerd with SIGSTOP, so that it hangs."""
        self._tell("STOP")

    def thaw(self) -> None:
        self._tell("CONT")
        if self._dockerd is not None:  # `nsenter` stops together with its child
            self._dockerd.send_signal(signal.SIGCONT)

    def docker(self, *words: str, check: bool = True) -> str:
        """Run the docker command of the engine's version."""
        return run(*self._docker, *words, check=check).strip()

    def start_docker(
        self, *words: str, output: int = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Start the docker command, and do not wait. The caller ends it."""
        return spawn([*self._docker, *words], log=output)

    def path(self, path: str) -> Path:
        """A file as the engine sees it, for example below /etc/docker."""
        return Path(f"/proc/{self._holder}/root{path}")

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def network(
        self,
        name: str,
        subnet: str | IPv6Network | None,
        *args: str,
        bridge: str | None = None,
        options: dict[str, str] | None = None,
    ) -> Network:
        """`docker network create`; args are additional flags, such as "--internal"."""
        bridge = bridge or f"br{name}"[:15]
        words = ["network", "create", "-o", f"com.docker.network.bridge.name={bridge}"]
        if subnet is not None:
            words += ["--ipv6", f"--subnet={subnet}"]
        for key, value in (options or {}).items():
            words += ["-o", f"{key}={value}"]
        return Network(name=name, id=self.docker(*words, *args, name), bridge=bridge)

    def run(
        self,
        name: str,
        network: str | Network,
        *args: str,
        publish: Sequence[str] = (),
        ip6: str | None = None,
        cmd: Sequence[str] = ("sleep", "infinity"),
    ) -> Container:
        """`docker run -d`; args are additional flags, publish is -p.

        Raises ValueError if the name has only hexadecimal digits. After the container is removed,
        the engine reads such a name as the beginning of an id: another container would be removed.
        """
        if set(name) <= set("0123456789abcdef"):
            raise ValueError(f"the engine could read the name {name} as an id")
        net = network if isinstance(network, str) else network.name
        words = ["run", "--detach", f"--name={name}", f"--network={net}"]
        # The first process of a container ignores signals without a handler.
        words += ["--stop-signal=KILL", *(f"--publish={each}" for each in publish)]
        words += [f"--ip6={ip6}"] if ip6 else []
        self.docker(*words, *args, IMAGE, *cmd)
        return self.container(name, network=net)

    def container(self, name: str, *, network: str | None = None) -> Container:
        """The current facts of a running container, with its address on `network` or on any."""
        (facts,) = json.loads(self.docker("inspect", "--type=container", name))
        networks = facts["NetworkSettings"]["Networks"]
        ends = [networks[network]] if network in networks else list(networks.values())
        addresses = [end["GlobalIPv6Address"] for end in ends if end["GlobalIPv6Address"]]
        return Container(
            name=name,
            id=facts["Id"],
            ns=Namespace(name=name, path=self.netns(facts["State"]["Pid"])),
            address=IPv6Address(addresses[0]) if addresses else None,
            facts=facts,
        )

    def kill_container(self, container: Container) -> None:
        """Kill the first process of a container without the engine, which may not run."""
        run(*self._inside, "kill", "-KILL", str(container.facts["State"]["Pid"]))

    def netns(self, pid: int) -> Path:
        """The network namespace of a process, by its pid in the engine's namespace."""
        # /proc of the first process there has all processes.
        return self.path(f"/proc/{pid}/ns/net")

    def rm(self, *names: str) -> None:
        """Kill and remove containers."""
        self.docker("rm", "--force", "--volumes", *names)

    @property
    def _inside(self) -> tuple[str, ...]:
        """The nsenter command for the engine's mounts, processes, root and network."""
        into = ("--mount", "--pid", "--root", f"--net={self.sandbox.host.path}")
        return "nsenter", f"--target={self._holder}", *into

    @property
    def _docker(self) -> tuple[str, ...]:
        own = () if self.suite is None else self._inside
        return (*own, "docker", f"--host={self.endpoint}")

    @property
    def _log(self) -> Path:
        return self.dir / "log"

    @property
    def log_tail(self) -> str:
        """The end of the engine's log."""
        return tail(self._log)

    @property
    def _pidfile(self) -> Path:
        return self.dir / "pid"

    def _signal(self, number: signal.Signals) -> None:
        process = self._dockerd
        if process is None:
            return
        self._dockerd = None
        if process.poll() is None and self._pidfile.exists():
            self._tell(str(number.value))
        else:
            process.kill()
        process.wait(30)
        if number == signal.SIGKILL:
            # Both files stay after a kill, and the next start would see a running engine.
            self._pidfile.unlink(missing_ok=True)
            self.socket.unlink(missing_ok=True)

    def _tell(self, what: str) -> None:
        pid = self._pidfile.read_text().strip()
        # The shell's built-in kill: a tree has no other.
        run(*self._inside, "sh", "-c", f"kill -{what} {pid}", check=False)

    def _await(self, ask: Any, word: str) -> None:
        deadline = time.monotonic() + 30
        while word not in ask():
            assert self._dockerd is not None
            if self._dockerd.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"dockerd did not come up:\n{tail(self._log)}")
            time.sleep(0.02)

    def _import(self) -> None:
        image = self.dir / "image.tar"
        write_image(image)
        self.docker("import", str(image), IMAGE)


def write_image(file: Path) -> None:
    """Write an image with busybox for `docker import`; this needs no registry."""
    with tarfile.open(file, "w") as tar:
        tar.add(Path("/bin/busybox").resolve(), "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        page = tarfile.TarInfo("www/cgi-bin/index.cgi")
        page.mode, page.size = 0o755, len(PAGE)
        tar.addfile(page, io.BytesIO(PAGE.encode()))


@contextmanager
def holder(sandbox: Sandbox, folder: Path, root: Path | None) -> Iterator[int]:
    """The first process of the engine's namespaces, by its pid on this machine.

    `root` is a tree that becomes their root, and stays unchanged.
    """
    said = folder / "holder"
    with said.open("wb") as out:
        namespaces = ("--mount", "--propagation=private", "--pid", "--fork", "--mount-proc")
        script = ("sh", "-c", HOLDER, "holder", str(folder), str(root or ""), str(sandbox.dir))
        process = spawn(["unshare", *namespaces, "--kill-child", *script], log=out)
    mounts = -1
    try:
        deadline = time.monotonic() + 10
        while b"ready" not in said.read_bytes():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"no namespaces for an engine:\n{tail(said)}")
            time.sleep(0.005)
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        mounts = os.open(f"/proc/{first}/ns/mnt", os.O_RDONLY)
        yield int(first)
    finally:
        with undisturbed():
            process.kill()
            process.wait(10)
            if mounts >= 0:
                remove_cgroups(mounts, sandbox.name)
                os.close(mounts)


def remove_cgroups(mounts: int, lab: str) -> None:
    """Remove the containers' cgroups after the kernel has reaped their processes.

    The cgroups may be mounted only in the engine's mount namespace, which the open file `mounts`
    keeps alive. A paused container must thaw to die.
    """
    # Not another lab whose name begins so.
    find = f'find /sys/fs/cgroup -depth "(" -path "*/{lab}" -o -path "*/{lab}/*" ")"'
    thaw = (
        f"{find} -name freezer.state -exec sh -c 'echo THAWED > $0' {{}} ';';"
        f" {find} -name cgroup.freeze -exec sh -c 'echo 0 > $0' {{}} ';'"
    )
    remove = f"{find} -type d -exec rmdir {{}} + && exit 0"
    script = (
        f"{{ {thaw}; for i in $(seq 200); do {remove}; sleep 0.02; done; }} 2>/dev/null; exit 1"
    )
    subprocess.run(
        ["nsenter", f"--mount=/proc/self/fd/{mounts}", "sh", "-c", script],
        check=True,
        pass_fds=(mounts,),
        env=environment(),
        timeout=30,
    )
