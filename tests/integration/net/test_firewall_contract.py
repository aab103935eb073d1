"""The contract of every firewall: the same cases on the fake, on nft and on legacy.

With python-iptables, the legacy backend builds rules in this process. Its rules must equal, byte
for byte, those that the restore tool builds.
"""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import re
import socket
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

import pytest

from ipv6natd.firewall import legacy as legacy_backend
from ipv6natd.firewall import tools, xtables
from ipv6natd.firewall.backend import Firewall, FirewallError
from ipv6natd.firewall.legacy import LegacyFirewall
from ipv6natd.firewall.restore import RestoreFirewall, detect_backend
from ipv6natd.firewall.select import open_firewall
from ipv6natd.firewall.xtables import table_sizes
from ipv6natd.model import Protocol
from ipv6natd.netfilter.diff import ObservedTable, TableChange
from ipv6natd.netfilter.jumps import JUMPS
from ipv6natd.netfilter.rules import (
    COMMENT,
    DOCKER_USER,
    Backend,
    BaseJump,
    Chains,
    Dnat,
    Jump,
    Match,
    Rule,
    Snat,
    Table,
    Verdict,
)
from ipv6natd.sync.applier import remove_all
from tests.harness.fake_firewall import FakeFirewall
from tests.harness.needs import lack, need
from tests.integration.net.conftest import fresh_namespace

TO_FORWARD = BaseJump(
    base="FORWARD", rule=Rule(target=Jump("IPV6NAT-FORWARD"), matches=(Match.OURS,)), first=True
)
TO_DOCKER_USER = BaseJump(
    base="FORWARD", rule=Rule(target=Jump(DOCKER_USER), matches=(Match.OURS,)), first=True
)
CT = (
    Rule(target=Verdict.ACCEPT, in_interface="br-a"),
    Rule(target=Verdict.ACCEPT, out_interface="br-a"),
)
CHAINS = {
    "IPV6NAT-CT": CT,
    "IPV6NAT-FORWARD": (
        Rule(target=Jump("IPV6NAT-CT"), matches=(Match.NO_FLOW,)),
        Rule(target=Verdict.DROP, not_in_interface="br-a", out_interface="br-a"),
    ),
}
FULL = TableChange(
    table=Table.FILTER,
    create=(DOCKER_USER,),
    chains=CHAINS,
    insert=(TO_DOCKER_USER, TO_FORWARD),
)
FOREIGN = """\
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:UFW-BEFORE - [0:0]
-A FORWARD -i eth0 -j UFW-BEFORE
-A FORWARD -m comment --comment "it\\'s \\"DOCKER-USER\\" -j IPV6NAT-FORWARD" -j ACCEPT
-A UFW-BEFORE -s fd00:f::/64 -p tcp -m tcp --dport 22 -j ACCEPT
COMMIT
"""


@dataclass(frozen=True)
class Host:
    firewall: Firewall
    load: Callable[[str], None]
    """Restore a text with --noflush, as another program does."""
    save: Callable[[], str]

    def dump(self) -> str:
        """The tables without comments of the tool and without counters."""
        text = re.sub(r"^#.*\n", "", self.save(), flags=re.MULTILINE)
        return re.sub(r"\[\d+:\d+\]", "[0:0]", text)

    def rules(self, chain: str) -> list[str]:
        start = f"-A {chain} "
        return [
            line.removeprefix(start) for line in self.dump().splitlines() if line.startswith(start)
        ]

    def observed(self, table: Table = Table.FILTER) -> ObservedTable:
        return self.firewall.read()[table]

    def jumps(self) -> list[tuple[str, int, str, bool, bool]]:
        jumps = self.observed().jumps
        return [
            (jump.base, jump.position, jump.target, jump.ours, jump.unconditional) for jump in jumps
        ]


def real_host(firewall: Firewall) -> Host:
    def load(text: str) -> None:
        tool = f"ip6tables-{firewall.backend}-restore"
        subprocess.run([tool, "--noflush", "--wait"], input=text, text=True, check=True)

    def save() -> str:
        tool = f"ip6tables-{firewall.backend}-save"
        return subprocess.run([tool], text=True, check=True, stdout=subprocess.PIPE).stdout

    return Host(firewall=firewall, load=load, save=save)


def legacy_firewall() -> LegacyFirewall:
    with warnings.catch_warnings():
        # python-iptables 1.0.1 imports distutils.
        warnings.simplefilter("ignore")
        try:
            from ipv6natd.firewall.libiptc import LibiptcWriter
        except ImportError as error:
            lack(f"python-iptables ({error})")
    return LegacyFirewall(LibiptcWriter().write)


@functools.cache
def kernel_has(backend: Backend) -> bool:
    with fresh_namespace():
        tool = [f"ip6tables-{backend}", "-t", "nat", "-A", "OUTPUT"]
        return subprocess.run(tool, stderr=subprocess.DEVNULL, check=False).returncode == 0


def need_backend(backend: Backend) -> None:
    need("ip", *(f"ip6tables-{backend}{verb}" for verb in ("", "-restore", "-save")))
    if not kernel_has(backend):
        lack(f"a kernel with the {backend} variant")


@pytest.fixture(params=["fake", "nft", "legacy", "legacy without python-iptables"])
def host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Host:
    if request.param == "fake":
        fake = FakeFirewall()
        return Host(firewall=fake, load=fake.load, save=fake.dump)
    backend = Backend(request.param.partition(" ")[0])
    need_backend(backend)
    request.getfixturevalue("namespace")
    request.getfixturevalue("xtables_lock")
    if request.param == "legacy":
        monkeypatch.setattr(legacy_backend, "MAX_RULES_IN_PROCESS", 200)
        return real_host(legacy_firewall())
    monkeypatch.setitem(sys.modules, "iptc", None)
    monkeypatch.delitem(sys.modules, "ipv6natd.firewall.libiptc", raising=False)
    return real_host(open_firewall(backend))


@pytest.fixture
def nft(namespace: str) -> Host:
    assert namespace
    need("nft")
    need_backend(Backend.NFT)
    return real_host(RestoreFirewall(Backend.NFT))


@pytest.fixture
def legacy(namespace: str, xtables_lock: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    assert namespace
    assert xtables_lock
    need_backend(Backend.LEGACY)
    monkeypatch.setattr(legacy_backend, "MAX_RULES_IN_PROCESS", 200)
    return real_host(legacy_firewall())


def test_read_creates_no_table(host: Host) -> None:
    assert host.firewall.read() == {table: ObservedTable() for table in Table}
    assert host.dump() == ""


def test_write_creates_chains_rules_and_jumps(host: Host) -> None:
    host.firewall.write(FULL)
    observed = host.observed()
    assert set(observed.chains) == {"IPV6NAT-CT", "IPV6NAT-FORWARD"}
    assert [digest.split(":")[0] for digest in observed.chains.values()] == ["2", "2"]
    assert observed.docker_user == 0
    assert host.jumps() == [
        ("FORWARD", 0, DOCKER_USER, True, True),
        ("FORWARD", 1, "IPV6NAT-FORWARD", True, True),
    ]
    assert host.rules("IPV6NAT-CT") == ["-i br-a -j ACCEPT", "-o br-a -j ACCEPT"]
    assert host.observed(Table.NAT) == ObservedTable()


def test_repeated_write_changes_nothing(host: Host) -> None:
    host.firewall.write(FULL)
    observed, text = host.firewall.read(), host.dump()
    host.firewall.write(replace(FULL, create=(), insert=()))
    assert host.firewall.read() == observed
    assert host.dump() == text


def test_write_of_one_chain_keeps_the_others(host: Host) -> None:
    host.firewall.write(FULL)
    before = host.observed().chains
    shorter: Chains = {"IPV6NAT-CT": CT[:1]}
    host.firewall.write(TableChange(table=Table.FILTER, chains=shorter))
    after = host.observed().chains
    assert after["IPV6NAT-CT"] != before["IPV6NAT-CT"]
    assert after["IPV6NAT-FORWARD"] == before["IPV6NAT-FORWARD"]
    assert host.rules("IPV6NAT-CT") == ["-i br-a -j ACCEPT"]


def test_digest_does_not_depend_on_other_chains(host: Host) -> None:
    host.firewall.write(FULL)
    before = host.observed().chains["IPV6NAT-FORWARD"]
    host.firewall.write(TableChange(table=Table.FILTER, chains={"IPV6NAT-A": CT * 3}))
    assert host.observed().chains["IPV6NAT-FORWARD"] == before


def test_digests_of_some_chains_match_the_full_read(host: Host) -> None:
    rules = (*CT, Rule(target=Verdict.ACCEPT, protocol=Protocol.UDP, ports=(1, 2)))
    chains = CHAINS | {"IPV6NAT-A": rules, "IPV6NAT-B": ()}
    host.firewall.write(replace(FULL, chains=chains))
    every = host.observed().chains
    few = ("IPV6NAT-A", "IPV6NAT-B", "IPV6NAT-CT")
    assert host.firewall.digests(Table.FILTER, few) == {name: every[name] for name in few}
    assert host.firewall.digests(Table.FILTER, ()) == {}
    with pytest.raises(FirewallError):
        host.firewall.digests(Table.FILTER, ("IPV6NAT-A", "IPV6NAT-NONE"))


def test_foreign_edit_changes_the_digest(host: Host) -> None:
    host.firewall.write(FULL)
    before = host.observed().chains
    host.load("*filter\n-D IPV6NAT-CT -o br-a -j ACCEPT\nCOMMIT\n")
    after = host.observed().chains
    assert after["IPV6NAT-CT"] != before["IPV6NAT-CT"]
    assert after["IPV6NAT-FORWARD"] == before["IPV6NAT-FORWARD"]


def test_changed_target_changes_the_digest(host: Host) -> None:
    host.firewall.write(FULL)
    before = host.observed().chains["IPV6NAT-CT"]
    changed: Chains = {"IPV6NAT-CT": (replace(CT[0], target=Verdict.DROP), CT[1])}
    host.firewall.write(TableChange(table=Table.FILTER, chains=changed))
    assert host.observed().chains["IPV6NAT-CT"] != before


def test_foreign_rules_stay_unchanged(host: Host) -> None:
    host.load(FOREIGN)
    before = host.dump()
    host.firewall.write(FULL)
    assert "UFW-BEFORE" in host.dump()
    undo(host)
    assert host.dump() == before


def undo(host: Host) -> None:
    observed = host.observed()
    ours = tuple(jump for jump in observed.jumps if jump.ours)
    delete = (*observed.chains, DOCKER_USER)
    host.firewall.write(TableChange(table=Table.FILTER, remove=ours, delete=delete))


def test_own_chains_and_jumps_are_removed(host: Host) -> None:
    host.firewall.write(FULL)
    undo(host)
    assert host.observed() == ObservedTable()


def test_delete_of_a_missing_own_chain_is_no_error(host: Host) -> None:
    host.firewall.write(FULL)
    host.firewall.write(TableChange(table=Table.FILTER, delete=("IPV6NAT-GONE",)))
    assert "IPV6NAT-GONE" not in host.observed().chains


def test_own_jumps_move_to_the_head_in_one_write(host: Host) -> None:
    host.firewall.write(FULL)
    host.load("*filter\n-I FORWARD 1 -i eth0 -j ACCEPT\nCOMMIT\n")
    ours = tuple(jump for jump in host.observed().jumps if jump.ours)
    assert [jump.position for jump in ours] == [1, 2]
    insert = (TO_DOCKER_USER, TO_FORWARD)
    host.firewall.write(TableChange(table=Table.FILTER, remove=ours, insert=insert))
    assert [jump[:3] for jump in host.jumps()] == [
        ("FORWARD", 0, DOCKER_USER),
        ("FORWARD", 1, "IPV6NAT-FORWARD"),
    ]
    assert host.rules("FORWARD")[2:] == ["-i eth0 -j ACCEPT"]


def test_jump_without_first_is_appended(host: Host) -> None:
    host.load("*nat\n-A PREROUTING -i eth0 -j ACCEPT\nCOMMIT\n")
    rule = Rule(target=Jump("IPV6NAT-DNAT"), matches=(Match.DESTINATION_LOCAL, Match.OURS))
    chains: Chains = {"IPV6NAT-DNAT": ()}
    jump = BaseJump(base="PREROUTING", rule=rule)
    host.firewall.write(TableChange(table=Table.NAT, chains=chains, insert=(jump,)))
    (found,) = host.observed(Table.NAT).jumps
    assert (found.position, found.ours, found.unconditional) == (1, True, False)


def test_foreign_jump_to_docker_user_is_not_ours(host: Host) -> None:
    host.load(
        "*filter\n:DOCKER-USER - [0:0]\n"
        "-A FORWARD -j DOCKER-USER\n-A FORWARD -i eth0 -j DOCKER-USER\n"
        '-A FORWARD -m comment --comment "not ipv6natd" -j DOCKER-USER\nCOMMIT\n'
    )
    assert host.jumps() == [
        ("FORWARD", 0, DOCKER_USER, False, True),
        ("FORWARD", 1, DOCKER_USER, False, False),
        ("FORWARD", 2, DOCKER_USER, False, True),
    ]


def test_removal_of_an_own_jump_keeps_foreign_jumps_to_the_same_chain(host: Host) -> None:
    host.firewall.write(FULL)
    host.load("*filter\n-A FORWARD -j DOCKER-USER\n-A FORWARD -i eth0 -j DOCKER-USER\nCOMMIT\n")
    ours = tuple(j for j in host.observed().jumps if j.ours and j.target == DOCKER_USER)
    host.firewall.write(TableChange(table=Table.FILTER, remove=ours))
    assert [jump[2:] for jump in host.jumps()] == [
        ("IPV6NAT-FORWARD", True, True),
        (DOCKER_USER, False, True),
        (DOCKER_USER, False, False),
    ]


def test_renamed_chain_is_foreign_and_the_jump_to_it_is_ours(host: Host) -> None:
    host.load(
        "*filter\n:MINE - [0:0]\n:IPV6NAT-CT - [0:0]\n-A MINE -j ACCEPT\n"
        f"-A FORWARD -m comment --comment {COMMENT} -j MINE\n"
        f"-A FORWARD -m comment --comment {COMMENT} -j ACCEPT\n"
        "-A FORWARD -m comment --comment other -j MINE\nCOMMIT\n"
    )
    (jump,) = host.firewall.read()[Table.FILTER].jumps
    assert (jump.base, jump.target, jump.ours) == ("FORWARD", "MINE", True)
    host.firewall.write(TableChange(table=Table.FILTER, remove=(jump,)))
    assert host.rules("FORWARD") == [
        f"-m comment --comment {COMMENT} -j ACCEPT",
        "-m comment --comment other -j MINE",
    ]
    assert host.rules("MINE") == ["-j ACCEPT"]


def test_docker_user_keeps_rules_of_the_administrator(host: Host) -> None:
    host.firewall.write(FULL)
    host.load("*filter\n-A DOCKER-USER -s fd00:f::/64 -j DROP\nCOMMIT\n")
    host.firewall.write(replace(FULL, create=(), insert=()))
    assert host.observed().docker_user == 1
    before = host.dump()
    with pytest.raises(FirewallError):
        undo(host)
    assert host.dump() == before


REFUSED = {
    "a jump to a missing chain": TableChange(
        table=Table.FILTER, chains={"IPV6NAT-A": (Rule(target=Jump("NONE")),)}
    ),
    "a chain that exists": TableChange(
        table=Table.FILTER, create=(DOCKER_USER,), chains={"IPV6NAT-A": ()}
    ),
    "a chain that is jumped to": TableChange(
        table=Table.FILTER, chains={"IPV6NAT-A": ()}, delete=("IPV6NAT-CT",)
    ),
    "a rule that is not there": TableChange(
        table=Table.FILTER,
        remove=(),
        chains={"IPV6NAT-A": ()},
    ),
    "a name that is too long": TableChange(
        table=Table.FILTER, chains={"IPV6NAT-A": (), "IPV6NAT-" + "X" * 21: ()}
    ),
    "a base chain that is not there": TableChange(
        table=Table.FILTER,
        chains={"IPV6NAT-A": ()},
        insert=(BaseJump(base="NONE", rule=Rule(target=Jump("IPV6NAT-A"))),),
    ),
    "a target of another table": TableChange(
        table=Table.FILTER,
        chains={"IPV6NAT-A": (Rule(target=Verdict.MASQUERADE),)},
        insert=(BaseJump(base="FORWARD", rule=Rule(target=Jump("IPV6NAT-A"))),),
    ),
    "a loop": TableChange(
        table=Table.FILTER, chains={"IPV6NAT-CT": (Rule(target=Jump("IPV6NAT-FORWARD")),)}
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused_write_changes_nothing(host: Host, why: str) -> None:
    host.firewall.write(FULL)
    change = REFUSED[why]
    if why == "a rule that is not there":
        change = replace(change, remove=host.observed().jumps[:1])
        host.load("*filter\n-D FORWARD -m comment --comment ipv6natd -j DOCKER-USER\nCOMMIT\n")
    before = host.dump()
    with pytest.raises(FirewallError) as caught:
        host.firewall.write(change)
    assert str(caught.value)
    assert host.dump() == before
    # The refused write does not block the next one.
    host.firewall.write(TableChange(table=Table.FILTER, chains={"IPV6NAT-CT": CT}))


def test_chain_name_of_28_characters_is_accepted(host: Host) -> None:
    name = "IPV6NAT-" + "X" * 20
    host.firewall.write(TableChange(table=Table.FILTER, chains={name: ()}))
    assert name in host.observed().chains


def test_interface_name_of_15_characters_is_not_truncated(host: Host) -> None:
    name = "br-123456789abc"
    rules = (
        Rule(target=Verdict.ACCEPT, in_interface=name),
        Rule(target=Verdict.DROP, not_in_interface=name, out_interface=name),
    )
    host.firewall.write(TableChange(table=Table.FILTER, chains={"IPV6NAT-A": rules}))
    assert host.rules("IPV6NAT-A") == [
        f"-i {name} -j ACCEPT",
        f"! -i {name} -o {name} -j DROP",
    ]


def test_fake_firewall_with_fail_next_fails_once() -> None:
    fake = FakeFirewall()
    fake.fail_next = "no room"
    with pytest.raises(FirewallError, match="no room"):
        fake.write(FULL)
    assert (fake.writes, fake.dump()) == (0, "")
    fake.write(FULL)
    assert fake.writes == 1


SUBNET = IPv6Network("fd00:a::/64")
ADDRESS = IPv6Address("fd00:a::2")
HOST_ADDRESS = IPv6Network("2001:db8::1/128")
EVERY_RULE = {
    Table.RAW: (
        Rule(target=Verdict.RETURN, in_interface="lo"),
        Rule(target=Verdict.DROP, source=SUBNET, not_in_interface="br-a"),
        Rule(
            target=Verdict.DROP,
            matches=(Match.SOURCE_LOCAL,),
            in_interface="br-a",
            not_destination=IPv6Network("ff00::/8"),
        ),
        Rule(target=Jump("IPV6NAT-B"), source=IPv6Network("fd00::/12")),
        Rule(target=Verdict.DROP, matches=(Match.SOURCE_LOCAL_OR_ANYCAST_ON_LINK,)),
    ),
    Table.FILTER: (
        Rule(target=Verdict.ACCEPT),
        Rule(target=Verdict.DROP),
        Rule(target=Verdict.RETURN),
        Rule(target=Jump("IPV6NAT-B")),
        Rule(target=Jump("IPV6NAT-B"), matches=(Match.OURS,)),
        Rule(target=Verdict.ACCEPT, source=SUBNET),
        Rule(target=Verdict.ACCEPT, source=IPv6Network("fe80::/10")),
        Rule(target=Verdict.ACCEPT, source=IPv6Network("fd00:8000::/17"), destination=SUBNET),
        Rule(target=Verdict.ACCEPT, destination=HOST_ADDRESS),
        Rule(target=Verdict.ACCEPT, not_destination=IPv6Network("::1/128")),
        Rule(target=Verdict.ACCEPT, in_interface="br-a"),
        Rule(target=Verdict.ACCEPT, in_interface="br-123456789abc"),
        Rule(target=Verdict.ACCEPT, not_in_interface="br-a"),
        Rule(target=Verdict.ACCEPT, out_interface="br-a"),
        Rule(target=Verdict.ACCEPT, not_out_interface="br-123456789abc"),
        Rule(target=Jump("IPV6NAT-B"), in_interface="br-3+"),
        Rule(target=Jump("IPV6NAT-B"), out_interface="br-123456789ab+"),
        Rule(target=Verdict.ACCEPT, not_in_interface="br-a", out_interface="br-a"),
        Rule(target=Verdict.ACCEPT, in_interface="br-a", not_out_interface="br-b"),
        *(Rule(target=Verdict.ACCEPT, protocol=protocol) for protocol in Protocol),
        *(Rule(target=Verdict.ACCEPT, protocol=p, ports=(8080, 8080)) for p in Protocol),
        *(Rule(target=Verdict.ACCEPT, protocol=p, ports=(1, 65535)) for p in Protocol),
        *(Rule(target=Verdict.ACCEPT, protocol=p, ports=(10000, 19999)) for p in Protocol),
        Rule(target=Verdict.ACCEPT, matches=(Match.SOURCE_NOT_LOCAL,)),
        Rule(target=Verdict.ACCEPT, matches=(Match.SOURCE_LOCAL,)),
        Rule(target=Verdict.DROP, matches=(Match.SOURCE_LOCAL_ON_LINK, Match.DESTINATION_LOCAL)),
        Rule(target=Verdict.ACCEPT, matches=(Match.DESTINATION_NOT_LOCAL,)),
        Rule(target=Verdict.ACCEPT, not_source=SUBNET, in_interface="br-a"),
        Rule(target=Verdict.ACCEPT, matches=(Match.DESTINATION_LOCAL,)),
        Rule(target=Verdict.ACCEPT, matches=(Match.SOURCE_NOT_LOCAL, Match.DESTINATION_LOCAL)),
        Rule(target=Verdict.ACCEPT, matches=(Match.AUTHENTICATION,)),
        Rule(target=Verdict.DROP, protocol=Protocol.TCP, matches=(Match.SYN, Match.REPLY)),
        *(
            Rule(
                target=Verdict.DROP, matches=(Match.AUTHENTICATION,), flow=(protocol, first, 65535)
            )
            for protocol in Protocol
            for first in (1, 65535)
        ),
        Rule(target=Verdict.ACCEPT, matches=(Match.DNAT,)),
        Rule(
            target=Verdict.ACCEPT,
            matches=(Match.ICMP,),
            not_in_interface="br-a",
            out_interface="br-a",
        ),
        Rule(target=Verdict.ACCEPT, mark=(0x1, 0x1)),
        Rule(target=Verdict.ACCEPT, mark=(14, 0xFFFFFFFF)),
        Rule(target=Verdict.ACCEPT, matches=(Match.INVALID,)),
        *(Rule(target=Verdict.ACCEPT, matches=(m,)) for m in Match if m is not Match.SYN),
        Rule(target=Verdict.ACCEPT, matches=(Match.OURS,)),
        Rule(
            target=Verdict.TCP_RESET,
            destination=IPv6Network("::1/128"),
            protocol=Protocol.TCP,
            ports=(80, 80),
        ),
        Rule(target=Verdict.PORT_UNREACHABLE, protocol=Protocol.UDP, ports=(53, 53)),
        Rule(
            target=Verdict.DROP,
            source=SUBNET,
            not_destination=SUBNET,
            in_interface="br-a",
            not_out_interface="br-a",
            protocol=Protocol.TCP,
            ports=(80, 81),
            matches=(
                Match.SOURCE_NOT_LOCAL,
                Match.DESTINATION_LOCAL,
                Match.NO_FLOW,
                Match.OURS,
            ),
        ),
    ),
    Table.NAT: (
        Rule(target=Verdict.RETURN, source=IPv6Network("fe80::/10")),
        Rule(target=Verdict.MASQUERADE, source=SUBNET, not_out_interface="br-a"),
        Rule(target=Verdict.REDIRECT, protocol=Protocol.UDP, ports=(53, 63), in_interface="br-a"),
        Rule(target=Snat(IPv6Address("2001:db8::1")), source=SUBNET, matches=(Match.DNAT,)),
        *(Rule(target=Dnat(ADDRESS), protocol=p, ports=(1000, 1999)) for p in Protocol),
        *(Rule(target=Dnat(ADDRESS, 80), protocol=p, ports=(8080, 8080)) for p in Protocol),
        Rule(target=Dnat(ADDRESS)),
        Rule(
            target=Dnat(ADDRESS, 65535),
            destination=HOST_ADDRESS,
            not_in_interface="br-a",
            protocol=Protocol.TCP,
            ports=(443, 443),
        ),
    ),
}
BASE = {Table.RAW: "PREROUTING", Table.FILTER: "FORWARD", Table.NAT: "PREROUTING"}


def every_rule(table: Table) -> TableChange:
    chains: Chains = {"IPV6NAT-A": EVERY_RULE[table], "IPV6NAT-B": ()}
    rule = Rule(target=Jump("IPV6NAT-B"), matches=(Match.OURS,))
    first = BaseJump(base=BASE[table], rule=rule, first=True)
    last = BaseJump(
        base=BASE[table], rule=replace(rule, matches=(Match.DESTINATION_LOCAL, Match.OURS))
    )
    return TableChange(table=table, chains=chains, insert=(first, last))


def kernel_bytes(table: Table) -> bytes:
    """The table in the kernel's binary form, without counters and back pointers."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ask(option: int, question: bytes) -> bytes:
        answer = ctypes.create_string_buffer(question, len(question))
        size = ctypes.c_uint32(len(question))
        with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            failed = libc.getsockopt(
                raw.fileno(), socket.IPPROTO_IPV6, option, answer, ctypes.byref(size)
            )
        assert not failed, os.strerror(ctypes.get_errno())
        return answer.raw

    name = table.encode().ljust(32, b"\0")
    (size,) = struct.unpack_from("=I", ask(64, name + bytes(52)), 80)
    blob = bytearray(ask(65, struct.pack("=32sI4x", name, size) + bytes(size))[40:])
    offset = 0
    while offset < len(blob):
        (following,) = struct.unpack_from("=H", blob, offset + 142)
        blob[offset + 144 : offset + 168] = bytes(24)
        offset += following
    return bytes(blob)


@pytest.mark.parametrize("table", Table)
def test_legacy_tables_equal_those_of_the_restore_tool(legacy: Host, table: Table) -> None:
    legacy.firewall.write(every_rule(table))
    built, text, observed = kernel_bytes(table), legacy.dump(), legacy.observed(table)
    with fresh_namespace():
        RestoreFirewall(Backend.LEGACY).write(every_rule(table))
        assert legacy.dump() == text
        assert kernel_bytes(table) == built
        assert legacy.observed(table) == observed
        parsed = RestoreFirewall(Backend.LEGACY).read()[table]
        assert [replace(jump, text="") for jump in parsed.jumps] == [
            replace(jump, text="") for jump in observed.jumps
        ]


def test_legacy_write_creates_only_its_table(legacy: Host) -> None:
    legacy.firewall.write(every_rule(Table.FILTER))
    assert Path("/proc/thread-self/net/ip6_tables_names").read_text().split() == ["filter"]


def scattered(count: int) -> TableChange:
    rules = tuple(
        Rule(target=Dnat(ADDRESS, 80), protocol=Protocol.TCP, ports=(port, port))
        for port in range(1, count + 1)
    )
    return TableChange(table=Table.NAT, chains={"IPV6NAT-DNAT": rules})


@pytest.mark.slow
def test_10000_legacy_rules_equal_those_of_the_restore_tool(
    legacy: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    change = scattered(10_000)
    legacy.firewall.write(change)
    bulk, observed = kernel_bytes(Table.NAT), legacy.observed(Table.NAT)
    monkeypatch.setattr(legacy_backend, "MAX_RULES_IN_PROCESS", 10_000)
    legacy_firewall().write(change)
    assert kernel_bytes(Table.NAT) == bulk
    assert legacy.observed(Table.NAT) == observed


def test_large_legacy_write_removes_jumps(legacy: Host) -> None:
    legacy.firewall.write(every_rule(Table.NAT))
    ours = legacy.observed(Table.NAT).jumps
    assert len(ours) == 2
    legacy.firewall.write(replace(scattered(300), remove=ours[1:]))
    (left,) = legacy.observed(Table.NAT).jumps
    assert left == ours[0]
    with pytest.raises(FirewallError, match=r"-D PREROUTING .* IPV6NAT-B"):
        legacy.firewall.write(replace(scattered(300), remove=ours[1:]))


def test_table_sizes_match_the_kernel(legacy: Host) -> None:
    assert table_sizes() == dict.fromkeys(Table, (0, 0))
    assert legacy.dump() == ""
    legacy.firewall.write(scattered(10))
    before = table_sizes()[Table.NAT]
    legacy.firewall.write(scattered(11))
    after = table_sizes()[Table.NAT]
    assert after[0] == before[0] + 1
    assert after[1] > before[1]


@pytest.fixture
def held_lock(xtables_lock: Path) -> Iterator[Callable[[], None]]:
    """The lock, held by another process until the function is called."""
    with xtables_lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lambda: fcntl.flock(lock, fcntl.LOCK_UN)


@pytest.mark.parametrize("rules", [1, 300])
def test_legacy_write_waits_for_the_xtables_lock(
    legacy: Host, held_lock: Callable[[], None], rules: int
) -> None:
    order: list[str] = []

    def release() -> None:
        order.append("released")
        held_lock()

    timer = threading.Timer(0.3, release)
    timer.start()
    legacy.firewall.write(scattered(rules))
    order.append("written")
    timer.join()
    assert order == ["released", "written"]
    assert legacy.observed(Table.NAT).chains


@pytest.mark.parametrize("rules", [1, 300])
def test_legacy_write_fails_after_the_lock_timeout(
    legacy: Host, held_lock: Callable[[], None], rules: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (tools, xtables):
        monkeypatch.setattr(module, "TOOL_TIMEOUT", 0.3)
    with pytest.raises(FirewallError, match=r"held by another|hold /run/xtables.lock"):
        legacy_firewall().write(scattered(rules))
    held_lock()
    assert legacy.observed(Table.NAT) == ObservedTable()


def test_detect_backend_finds_a_variant() -> None:
    need("ip6tables")
    assert detect_backend() in Backend
    assert open_firewall(Backend.NFT).backend is Backend.NFT


@pytest.mark.parametrize("backend", Backend)
def test_restore_error_shows_the_rejected_line_with_context(
    namespace: str, xtables_lock: Path, backend: Backend
) -> None:
    assert namespace
    assert xtables_lock
    need_backend(backend)
    with pytest.raises(FirewallError) as caught:
        RestoreFirewall(backend).write(REFUSED["a jump to a missing chain"])
    message = str(caught.value)
    assert f"ip6tables-{backend}-restore --noflush --wait refused: " in message
    assert "     3 -A IPV6NAT-A -j NONE" in message


def test_missing_tool_raises_an_error_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipv6natd.system.process.TOOL_DIRECTORIES", ("/nonexistent",))
    with pytest.raises(FirewallError, match="install the package iptables"):
        detect_backend()
    with pytest.raises(FirewallError, match="ip6tables-nft-restore"):
        RestoreFirewall(Backend.NFT)


def test_legacy_tables_beside_nft_are_no_error(namespace: str, xtables_lock: Path) -> None:
    assert namespace
    assert xtables_lock
    need_backend(Backend.NFT)
    need_backend(Backend.LEGACY)
    RestoreFirewall(Backend.LEGACY).write(FULL)
    nft = RestoreFirewall(Backend.NFT)
    nft.write(FULL)
    assert set(nft.read()[Table.FILTER].chains) == {"IPV6NAT-CT", "IPV6NAT-FORWARD"}


NATIVE_RULES = ["fib daddr type local accept", "numgen random mod 2 0 accept"]
TO_RAW = BaseJump(
    base="PREROUTING", rule=Rule(target=Jump("IPV6NAT-SRC"), matches=(Match.OURS,)), first=True
)
RAW = TableChange(
    table=Table.RAW,
    chains={"IPV6NAT-SRC": (Rule(in_interface="lo", target=Verdict.RETURN),)},
    insert=(TO_RAW,),
)
NAT = TableChange(
    table=Table.NAT,
    chains=dict.fromkeys(("IPV6NAT-DNAT", "IPV6NAT-POST", "IPV6NAT-PRE"), ()),
    insert=JUMPS[Table.NAT],
)


@pytest.mark.parametrize("rule", NATIVE_RULES)
@pytest.mark.parametrize("change", [FULL, NAT, RAW], ids=["filter", "nat", "raw"])
def test_table_with_a_native_nft_rule_is_read_and_written(
    nft: Host, change: TableChange, rule: str
) -> None:
    """Q1: mailcow, libvirt and CNI add such rules; ip6tables-save then refuses the table."""
    table = change.table
    nft.firewall.write(change)
    before = nft.observed(table)
    bases = {jump.base for jump in change.insert}
    for base in bases:
        run_nft("insert", table, base, rule)
    assert f"*{table}" not in nft.dump()

    found = nft.observed(table)
    assert found.chains == before.chains
    assert nft.firewall.digests(table, before.chains) == before.chains
    shifted = [replace(jump, position=jump.position + 1) for jump in before.jumps]
    assert sorted(found.jumps, key=str) == sorted(shifted, key=str)
    assert found.docker_user == before.docker_user

    created = replace(change, create=())
    nft.firewall.write(replace(created, remove=found.jumps))
    assert nft.observed(table).chains == before.chains
    remove_all(nft.firewall)
    assert nft.observed(table) == ObservedTable()
    for base in bases:
        listing = run_nft("list", table, base)
        handle = re.search(r"# handle (\d+)\n\t}", listing)
        assert handle, listing
        run_nft("delete", table, base, f"handle {handle[1]}")
    for line in nft.dump().splitlines():
        assert not line.startswith("-A"), line


def test_native_nft_rule_in_a_chain_of_ours_changes_its_digest(nft: Host) -> None:
    nft.firewall.write(FULL)
    before = nft.observed().chains
    run_nft("add", Table.FILTER, "IPV6NAT-CT", NATIVE_RULES[1])
    after = nft.observed().chains
    assert after["IPV6NAT-FORWARD"] == before["IPV6NAT-FORWARD"]
    assert after["IPV6NAT-CT"] != before["IPV6NAT-CT"]


def test_table_with_a_native_rule_is_unknown_without_nft(
    nft: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    nft.firewall.write(FULL)
    run_nft("insert", Table.FILTER, "FORWARD", NATIVE_RULES[1])
    monkeypatch.setattr("ipv6natd.firewall.save.which", lambda _: None)
    with pytest.raises(FirewallError, match="install the package nftables"):
        nft.firewall.read()


def run_nft(verb: str, table: Table, chain: str, rule: str = "") -> str:
    kind = "chain" if verb == "list" else "rule"
    words = ["nft", "-a", verb, kind, "ip6", table, chain, *rule.split()]
    return subprocess.run(words, check=True, text=True, stdout=subprocess.PIPE).stdout
