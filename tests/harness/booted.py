"""A booted host of a Debian suite: systemd as PID 1, a bus, Docker as a service, a client outside.

systemd-nspawn boots a tree (tests/harness/tree.py) with an overlay in memory, in the network
namespace of a sandbox's host. The overlay and the engine's data survive reboots. Each boot has a
new network without rules, as on any machine.

Facts about systemd-nspawn:
- On a machine with cgroups of version 1, nspawn gives the host version 2 only with a variable.
  systemd 258 and later runs only on version 2.
- With --network-namespace-path, /proc/sys/net is read-only without another variable.
- Two hosts that boot at once must start in separate cgroups, of either version: nspawn creates
  "payload" in its own cgroup.
- With --keep-unit a reboot ends nspawn with status 133 and does not start the host again.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.harness import tree
from tests.harness.engine import write_image
from tests.harness.namespace import Namespace
from tests.harness.process import LAB, LabError, run, spawn, tail, undisturbed
from tests.harness.sandbox import Sandbox, folder

NUMBERS = itertools.count(1)

VARIABLES = {
    "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network",
}

HOLDER = """
set -e
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir upper work root docker shared cgroup
mount -t cgroup2 cgroup2 cgroup
mount -t overlay -o "lowerdir=$2,upperdir=upper,workdir=work" overlay root
rm root/usr/sbin/policy-rc.d             # services may start here
: >root/etc/machine-id
echo force-unsafe-io >root/etc/dpkg/dpkg.cfg.d/lab
echo ready
exec sleep infinity
"""

BOOT = """
set -e
memory=$1 name=$2 network=$3
shift 3
for place in /sys/fs/cgroup/systemd "$memory/cgroup"; do
    if [ -d "$place" ]; then
        mkdir -p "$place/$name"
        echo $$ >"$place/$name/cgroup.procs"
    fi
done
umount "$memory/network" 2>/dev/null || touch "$memory/network"
mount --no-canonicalize --bind "$network" "$memory/network"   # its path does not exist here
# This process is the first of its namespace, so its end kills the host. nspawn alone would not.
exec unshare --mount --pid --fork --kill-child --mount-proc "$@"
"""

BURY = """
for i in $(seq 1000); do
    left=
    for group in /sys/fs/cgroup/"$2" /sys/fs/cgroup/*/"$2" "$1/cgroup/$2"; do
        if [ -d "$group" ]; then
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
        fi
    done
    [ "$left" ] || exit 0
    sleep 0.02
done
exit 1
"""
"""Cgroups can be removed after the kernel has reaped their processes."""


class Booted:
    """A host. Entering the context boots it."""

    sandbox: Sandbox
    """The network of the host."""

    def __init__(self, suite: tree.Suite) -> None:
        self.suite = suite
        # Two hosts of one suite may run at once.
        self._name = f"{LAB}-{suite}{next(NUMBERS)}"
        self._stack = ExitStack()
        self._network = ExitStack()
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.dir = stack.enter_context(folder(self._name))
            self._holder = stack.enter_context(self._held(tree.path(self.suite)))
            write_image(self.shared / "image.tar")
            stack.callback(self._bury)
            stack.callback(self.cut)
            self.plug()
            self.boot()
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

    @property
    def shared(self) -> Path:
        """The path of the host's /lab on this machine."""
        return Path(f"/proc/{self._holder}/root{self.dir}/mem/shared")

    @property
    def console(self) -> str:
        return (self.dir / "console").read_text(errors="replace")

    def plug(self) -> None:
        """Connect the host to a new network, with forwarding disabled as on any fresh host."""
        self.sandbox = self._network.enter_context(Sandbox())
        self.sandbox.host.sysctl("net.ipv6.conf.all.forwarding", 0)

    def boot(self) -> None:
        """Boot the host, and wait until all units of its default target are up or have failed."""
        memory = f"{self.dir}/mem"
        nspawn = (
            *("systemd-nspawn", "--quiet", f"--directory={memory}/root", "--boot"),
            *("--register=no", "--keep-unit", "--capability=all", "--console=pipe"),
            f"--network-namespace-path={memory}/network",
            "--system-call-filter=@keyring bpf",
            *(f"--bind={memory}/shared:/lab", f"--bind={memory}/docker:/var/lib/docker"),
            f"--hostname={self.suite}",
        )
        # Through our process: the holder's mount namespace does not have mounts that are newer.
        network = os.open(self.sandbox.host.path, os.O_RDONLY)
        self._network.callback(os.close, network)
        boot = ("boot", memory, self._name, f"/proc/{os.getpid()}/fd/{network}", *nspawn)
        with (self.dir / "console").open("ab") as log:
            self._nspawn = spawn(
                (*self._inside, "sh", "-c", BOOT, *boot),
                log=log,
                env=VARIABLES,
            )
        self._await_up()

    def await_off(self, *, timeout: float = 60) -> None:
        """Wait for the shutdown, for a reboot or a power-off, and remove the network."""
        assert self._nspawn is not None
        try:
            self._nspawn.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"no shutdown:\n{tail(self.dir / 'console', 30)}") from None
        self.cut()

    def cut(self) -> None:
        """Kill the host like a power failure, and remove the network."""
        with undisturbed():
            if self._nspawn is not None:
                self._nspawn.kill()
                self._nspawn.wait(10)
            self._network.close()

    def run(self, *argv: str, check: bool = True, timeout: float = 60) -> str:
        """The output of a command, run as root inside."""
        return run(*self._entering, *argv, check=check, timeout=timeout)

    def sh(self, script: str, *, check: bool = True, timeout: float = 60) -> str:
        """The output of a shell script, run as root inside."""
        return self.run("sh", "-c", script, check=check, timeout=timeout)

    def as_nobody(self, *argv: str) -> str:
        """The output of a command, run as a plain user inside, also of a failed one."""
        user = ("--reuid=nobody", "--regid=nogroup", "--clear-groups")
        return self.run("setpriv", *user, *argv, check=False)

    def show(self, property: str, unit: str = "ipv6natd") -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={property}", unit).strip()

    def journal(self, *, unit: str = "ipv6natd") -> str:
        """The journal of a unit since its first start."""
        return self.run("journalctl", f"--unit={unit}", "--output=cat", "--no-pager")

    def container(self, name: str) -> Namespace:
        """The network namespace of a running container."""
        pid = self.run("docker", "inspect", "--format={{.State.Pid}}", name).strip()
        return Namespace(name=name, path=Path(f"/proc/{self._init}/root/proc/{pid}/ns/net"))

    @property
    def _inside(self) -> tuple[str, ...]:
        return "nsenter", f"--target={self._holder}", "--mount"

    @property
    def _entering(self) -> tuple[str, ...]:
        return "nsenter", f"--target={self._init}", "--all", "--wdns=/"

    def _await_up(self) -> None:
        deadline = time.monotonic() + 90
        self._init = 0
        state = ""
        while state not in ("running", "degraded"):
            assert self._nspawn is not None
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"no boot ({state}):\n{tail(self.dir / 'console', 30)}")
            time.sleep(0.05)
            self._init = self._init or first_process(self._nspawn.pid)
            if self._init:
                ask = ("systemctl", "is-system-running", "--wait")
                state = self.run(*ask, check=False).strip()

    @contextmanager
    def _held(self, root: Path) -> Iterator[int]:
        """A process whose mount namespace contains the host's root."""
        said, memory = self.dir / "holder", self.dir / "mem"
        memory.mkdir()
        with said.open("wb") as out:
            script = ("sh", "-c", HOLDER, "holder", str(memory), str(root))
            process = spawn(["unshare", "--mount", "--propagation=private", *script], log=out)
        try:
            deadline = time.monotonic() + 10
            while b"ready" not in said.read_bytes():
                if process.poll() is not None or time.monotonic() > deadline:
                    raise LabError(f"nothing to boot:\n{tail(said)}")
                time.sleep(0.005)
            yield process.pid
        finally:
            with undisturbed():
                process.kill()
                process.wait(10)

    def _bury(self) -> None:
        memory = f"{self.dir}/mem"
        run(*self._inside, "sh", "-c", BURY, "bury", memory, self._name)


def first_process(unshare: int) -> int:
    """The host's PID 1, a child of nspawn, by our process number; 0 before it starts."""
    for nspawn in children(unshare):
        for child in children(nspawn):
            with suppress(OSError):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return child
    return 0


def children(process: int) -> list[int]:
    with suppress(OSError):
        path = Path(f"/proc/{process}/task/{process}/children")
        return [int(each) for each in path.read_text().split()]
    return []
