"""Names of interfaces and other objects that could become a path or a command.

A name has up to 15 bytes, enough for `$(reboot)`. Root copies the commands of findings to a shell.
"""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

import pytest

from ipv6natd.engine.endpoint import security_warnings
from ipv6natd.host import facts as host_facts
from ipv6natd.host.findings import HostFacts, RaDefaultRoute, evaluate
from ipv6natd.host.nft import BaseChain
from ipv6natd.model import is_interface, is_plain_interface
from tests.harness.build import network

PLAIN = ["eth0", "eth0.100", "br-0123456789ab", "wlp3s0", "veth@if7", "a" * 15, "0", "_x"]
UNUSUAL = [
    "*",
    "-e",
    "$(reboot)",
    ";id",
    "a'b",
    'a"b',
    "a\\nb",
    "`id`",
    "[a]",
    "a&b",
    "größe",
    ".x",
    "x+",
]
INVALID = ["", ".", "..", "a/b", "../x", "a b", "a\nb", "a\tb", "a:b", "a\0b", "a\x85b", "a" * 16]
LONG = "ö" * 8
"""16 bytes; the kernel counts bytes and not characters."""


@pytest.mark.parametrize("name", PLAIN)
def test_plain_name_is_one_word_in_a_shell(name: str) -> None:
    assert is_interface(name)
    assert is_plain_interface(name)
    assert shlex.quote(name) == name


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_name_is_an_interface_and_not_plain(name: str) -> None:
    assert is_interface(name)
    assert not is_plain_interface(name)


@pytest.mark.parametrize("name", [*INVALID, LONG])
def test_invalid_name_is_no_interface(name: str) -> None:
    assert not is_interface(name)
    assert not is_plain_interface(name)


def ra_finding(name: str) -> str:
    facts = HostFacts(
        ra_default_routes=(RaDefaultRoute(interface=name, accept_ra=1, forwarding=True),)
    )
    (finding,) = evaluate(facts, [])
    return finding.text


@pytest.mark.parametrize("name", UNUSUAL)
def test_no_name_of_an_interface_is_a_pattern_in_sysctl_d_or_a_word_of_the_shell(name: str) -> None:
    text = ra_finding(name)
    assert "/etc/sysctl.d" not in text
    command = text.rpartition(": ")[2]
    assert shlex.split(command) == ["echo", "2", ">", f"/proc/sys/net/ipv6/conf/{name}/accept_ra"]


def test_name_with_a_dot_is_one_part_of_a_sysctl_key() -> None:
    assert ra_finding("eth0.100").endswith("sysctl -w net.ipv6.conf.eth0/100.accept_ra=2")


def test_nft_chain_is_quoted_in_a_command() -> None:
    name = "$(touch owned)"
    chain = BaseChain(family="inet", table="t", name=name, hook="forward", policy="drop")
    facts = HostFacts(client_interfaces=("br-x", "eth0"), nft_chains=(chain,))
    (finding,) = evaluate(facts, [network(name="x", bridge="br-x")])
    assert shlex.split(finding.command)[:6] == ["nft", "insert", "rule", "inet", "t", name]


def test_name_of_a_cgroup_is_no_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every user and every container can name a process docker-ipv6nat, and choose the name of a
    cgroup."""
    here = tmp_path / "thread-self"
    process = tmp_path / "4711"
    for folder in (here, process):
        (folder / "ns").mkdir(parents=True)
        (folder / "ns/net").symlink_to("net:[1]")
        (folder / "net").mkdir()
        (folder / "net/if_inet6").write_text("fe80 eth0\n")
    (process / "comm").write_text("docker-ipv6nat\n")
    root, capabilities = "Uid:\t0\t0\t0\t0\n", "CapEff:\t00000000a80435fb\n"
    (process / "status").write_text(root + capabilities)
    (process / "cgroup").write_text(f"0::/user.slice/{';reboot #'.ljust(64, 'x')}\n")
    monkeypatch.setattr(host_facts, "_PROC", tmp_path)
    monkeypatch.setattr(host_facts, "_THREAD", here)
    assert host_facts.docker_ipv6nat() == "kill 4711"
    (process / "cgroup").write_text(f"0::/system.slice/docker-{'0a' * 32}.scope\n")
    assert host_facts.docker_ipv6nat() == "docker rm -f 0a0a0a0a0a0a"
    (process / "ns/net").unlink()
    assert host_facts.docker_ipv6nat() == "docker rm -f 0a0a0a0a0a0a"  # Q9
    (process / "ns/net").symlink_to("net:[2]")
    assert host_facts.docker_ipv6nat() == ""
    (process / "ns/net").unlink()
    (process / "net/if_inet6").write_text("fe81 eth0\n")
    assert host_facts.docker_ipv6nat() == ""
    (process / "net/if_inet6").write_text("fe80 eth0\n")
    assert host_facts.docker_ipv6nat() != ""
    for status in (f"Uid:\t1000\t0\t0\t0\n{capabilities}", f"{root}CapEff:\t00000000a80425fb\n"):
        (process / "status").write_text(status)
        assert host_facts.docker_ipv6nat() == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_path_of_a_socket_is_quoted_in_a_command(tmp_path: Path) -> None:
    """It can be a link into a directory of a user, who chooses the names there."""
    path = tmp_path / "$(touch owned)"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o666)
        os.chown(path, 1000, 1000)
        warnings = list(security_warnings(f"unix://{path}", verified=False))
    assert len(warnings) == 2
    for warning in warnings:
        command = warning.rpartition(": ")[2]
        assert shlex.split(command)[-1] == str(path)
