"""The real ufw and firewalld, each in a sandbox."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.harness.bus import Bus
from tests.harness.probe import until
from tests.harness.process import end, run, spawn
from tests.harness.sandbox import Sandbox

Command = Callable[..., str]


def inside(pid: int) -> tuple[str, str]:
    """The nsenter options for a process's mounts, and its root for a machine in a chroot."""
    return f"--mount=/proc/{pid}/ns/mnt", f"--root=/proc/{pid}/root"


@contextmanager
def ufw(sandbox: Sandbox) -> Iterator[Command]:
    """The ufw command, with its files in memory and the lab's iptables."""
    prepare = """
        for d in /etc/ufw /lib/ufw; do
            cp -a $d $1/saved; mount -t tmpfs tmpfs $d; cp -a $1/saved/. $d; rm -r $1/saved
        done
        mount -t tmpfs tmpfs /run
        for t in iptables ip6tables; do for v in "" -save -restore; do
            mount --bind /usr/sbin/xtables-$2-multi "$(readlink -f /usr/sbin/$t$v)"
        done; done
        echo ready
        exec sleep infinity
    """
    said = sandbox.dir / "ufw"
    with said.open("wb") as log:
        words = ("sh", "-ec", prepare, "sh", str(sandbox.dir), sandbox.variant)
        process = spawn(["unshare", "--mount", *words], log=log)
    try:
        assert until(lambda: b"ready" in said.read_bytes(), True, timeout=5), said.read_bytes()

        def command(*words: str) -> str:
            mounts = inside(process.pid)
            return run("nsenter", *mounts, f"--net={sandbox.host.path}", "ufw", *words)

        yield command
    finally:
        end(process)


@contextmanager
def firewalld(sandbox: Sandbox, bus: Bus) -> Iterator[Command]:
    """firewall-cmd, with firewalld in the host's namespace and on its bus."""
    said = sandbox.dir / "firewalld"
    env = {"DBUS_SYSTEM_BUS_ADDRESS": bus.address}
    prepare = """
        mount -t tmpfs tmpfs /run
        cp -a /etc/firewalld $1/saved
        mount -t tmpfs tmpfs /etc/firewalld
        cp -a $1/saved/. /etc/firewalld
        rm -r $1/saved
        exec firewalld --nofork --nopid
    """
    with said.open("wb") as log:
        words = ("sh", "-ec", prepare, "sh", str(sandbox.dir))
        here = ("nsenter", f"--net={sandbox.host.path}", "unshare", "--mount")
        process = spawn([*here, *words], log=log, env=env)
    try:

        def command(*words: str) -> str:
            return run("firewall-cmd", *words, env=env)

        running = until(
            lambda: run("firewall-cmd", "--state", env=env, check=False), "running\n", timeout=15
        )
        assert running == "running\n", said.read_text()
        yield command
    finally:
        end(process)
