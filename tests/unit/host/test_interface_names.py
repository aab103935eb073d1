"""Names of interfaces, and of other things of the host, that want to be a path or a command.

A name has up to 15 bytes, which is room for `$(reboot)`. Commands in findings are pasted by root.
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
ODD = [
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
NONE = ["", ".", "..", "a/b", "../x", "a b", "a\nb", "a\tb", "a:b", "a\0b", "a\x85b", "a" * 16]
LONG = "ö" * 8
"""16 bytes, and the kernel counts bytes."""


@pytest.mark.parametrize("name", PLAIN)
def test_a_plain_name_is_one_word_everywhere(name: str) -> None:
    assert is_interface(name)
    assert is_plain_interface(name)
    assert shlex.quote(name) == name


@pytest.mark.parametrize("name", ODD)
def test_an_odd_name_is_an_interface_and_not_plain(name: str) -> None:
    assert is_interface(name)
    assert not is_plain_interface(name)


@pytest.mark.parametrize("name", [*NONE, LONG])
def test_what_the_kernel_takes_for_no_interface_is_none(name: str) -> None:
    assert not is_interface(name)
    assert not is_plain_interface(name)


def learned(name: str) -> str:
    facts = HostFacts(
        ra_default_routes=(RaDefaultRoute(interface=name, accept_ra=1, forwarding=True),)
    )
    (finding,) = evaluate(facts, []).findings
    return finding.text


@pytest.mark.parametrize("name", ODD)
def test_no_name_of_an_interface_is_a_pattern_in_sysctl_d_or_a_word_of_the_shell(name: str) -> None:
    text = learned(name)
    assert "/etc/sysctl.d" not in text
    command = text.rpartition(": ")[2]
    assert shlex.split(command) == ["echo", "2", ">", f"/proc/sys/net/ipv6/conf/{name}/accept_ra"]


def test_a_name_with_a_dot_is_one_part_of_a_sysctl_key() -> None:
    assert learned("eth0.100").endswith("sysctl -w net.ipv6.conf.eth0/100.accept_ra=2")


def test_a_chain_of_nft_is_quoted_in_a_command() -> None:
    name = "$(touch owned)"
    chain = BaseChain(family="inet", table="t", name=name, hook="forward", policy="drop")
    facts = HostFacts(global_interfaces=("br-x", "eth0"), nft_chains=(chain,), bridges_filtered={})
    (finding,) = evaluate(facts, [network(name="x", bridge="br-x")]).findings
    assert shlex.split(finding.command)[:6] == ["nft", "insert", "rule", "inet", "t", name]


def test_a_group_of_processes_is_no_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A plain user may name his processes docker-ipv6nat, and a control group as he likes."""
    here = tmp_path / "thread-self"
    rival = tmp_path / "4711"
    for each in (here, rival):
        (each / "ns").mkdir(parents=True)
        (each / "ns/net").symlink_to("net:[1]")
    (rival / "comm").write_text("docker-ipv6nat\n")
    (rival / "cgroup").write_text(f"0::/user.slice/{';reboot #'.ljust(64, 'x')}\n")
    monkeypatch.setattr(host_facts, "_PROC", tmp_path)
    monkeypatch.setattr(host_facts, "_THREAD", here)
    assert host_facts.docker_ipv6nat() == "kill 4711"
    (rival / "cgroup").write_text(f"0::/system.slice/docker-{'0a' * 32}.scope\n")
    assert host_facts.docker_ipv6nat() == "docker rm -f 0a0a0a0a0a0a"


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_the_path_of_a_socket_is_quoted_in_a_command(tmp_path: Path) -> None:
    """It may be a link into a folder of a plain user, who names what is there."""
    path = tmp_path / "$(touch owned)"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        path.chmod(0o666)
        os.chown(path, 1000, 1000)
        said = list(security_warnings(f"unix://{path}", verified=False))
    assert len(said) == 2
    for each in said:
        command = each.rpartition(": ")[2]
        assert shlex.split(command)[-1] == str(path)
