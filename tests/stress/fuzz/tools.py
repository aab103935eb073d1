"""Fuzzers of the output of the host's tools, and of the saved rules on disk."""

from __future__ import annotations

import contextlib
import json
import re
from collections import deque
from typing import Any
from unittest import mock

from ipv6natd.conntrack.entries import parse_entry
from ipv6natd.conntrack.stale import Change, Exposure, is_stale
from ipv6natd.firewall.monitor import MonitorOutput
from ipv6natd.host import facts as host_facts
from ipv6natd.host import firewalls as host_rules
from ipv6natd.host.findings import HostFacts, Severity, evaluate
from ipv6natd.model import Desired
from ipv6natd.netfilter import counters, docker_rules
from ipv6natd.netfilter.docker_rules import leftovers_from_save, removal_text
from ipv6natd.netfilter.observe import parse_save
from ipv6natd.netfilter.parse import parse_saved_rules
from ipv6natd.netfilter.render import format_ruleset
from ipv6natd.netfilter.rules import PREFIX
from ipv6natd.system import netlink
from ipv6natd.system import process as tools
from tests.harness.build import network
from tests.harness.conntrack import message_body
from tests.stress.fuzz.target import Target, read_json
from tests.unit.policy.test_properties import FOREIGN, GRAMMAR, USER

_REMOVED = re.compile(
    r"\*[^\n]*|COMMIT|-D (?:FORWARD|PREROUTING|OUTPUT|POSTROUTING|DOCKER[A-Z0-9-]*) .+"
    r"|:DOCKER(?:-[A-Z0-9-]+)? - \[0:0\]|-X DOCKER(?:-[A-Z0-9-]+)?"
)
_CHAIN = re.compile(r"(?<![^ :])IPV6NAT-[A-Za-z0-9_.@-]{1,20}(?= |$)")
NETWORKS = (network(), network(name="y", subnet="fd00:b::/64", internal=True))


def save_text(data: bytes) -> None:
    """With any output of ip6tables-save or nft no parser raises, each parsed jump is a line of the
    input, and the removal names only chains and rules of Docker."""
    text = data.decode("utf-8", "surrogateescape")
    for table in parse_save(text).values():
        assert all(name.startswith(PREFIX) for name in table.chains)
        assert all(f" {each.base} {each.text}" in text for each in table.jumps)
    gone = leftovers_from_save("nft", text, NETWORKS)
    for line in removal_text(gone).split("\n")[:-1]:
        assert _REMOVED.fullmatch(line), line
        assert line not in (":DOCKER-USER - [0:0]", "-X DOCKER-USER")
    rules = docker_rules.engine_rules([text], "")
    assert all(" " not in bridge for bridge in rules.bridges)
    with contextlib.suppress(ValueError):
        docker_rules.engine_rules([], text)
    counters.connection_counts(text)


def conntrack(data: bytes) -> None:
    """With any message about a conntrack entry nothing raises, and an entry to delete is named with
    bytes of the message."""
    for _, _, body in netlink.messages(data):
        list(netlink.attributes(body))
    here = Desired(networks=NETWORKS)
    entry = parse_entry(data)
    change = Change(here, here, frozenset(), Exposure.UNGUARDED)
    if entry and is_stale(entry, change):
        assert entry.original.packed in data


def a_comment(data: bytes) -> None:
    """The comment of a foreign rule changes neither the observed rules of ours nor the rules to
    remove."""
    comment = data.replace(b"\0", b"").decode("utf-8", "surrogateescape")[:255]
    quoted = re.sub(r"([\"\\'])", r"\\\1", comment)
    rule = f'-A FORWARD -m comment --comment "{quoted}" -j ACCEPT\n'
    with_it = STANDING.replace(MARK, rule)
    without = STANDING.replace(MARK, "-A FORWARD -j ACCEPT\n")
    assert parse_save(with_it) == parse_save(without)
    assert leftovers_from_save("nft", with_it, NETWORKS) == leftovers_from_save(
        "nft", without, NETWORKS
    )
    assert docker_rules.engine_rules([with_it], "") == docker_rules.engine_rules([without], "")


MARK = "-A FORWARD -i virbr0 -j ACCEPT\n"
OURS = """\
*filter
:IPV6NAT-FORWARD - [0:0]
-A FORWARD -m comment --comment ipv6natd -j IPV6NAT-FORWARD
-A IPV6NAT-FORWARD ! -i br-x -o br-x -j DROP
-A IPV6NAT-FORWARD -i br-x -j ACCEPT
COMMIT
"""
STANDING = FOREIGN + USER + OURS.replace(":IPV6NAT", MARK + ":IPV6NAT")
DOCKERS = """\
*nat
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s fd00:a::/64 ! -o br-0123456789ab -j MASQUERADE
-A POSTROUTING -s fd00:a::2/128 -d fd00:a::2/128 -p tcp -m tcp --dport 80 -j MASQUERADE
-A DOCKER ! -i br-x -p tcp -m tcp --dport 8080 -j DNAT --to-destination [fd00:a::2]:80
COMMIT
*raw
-A PREROUTING -d fd00:a::2/128 ! -i br-x -j DROP
COMMIT
"""
FLOWS = (
    "udp      17 29 src=2001:db8::9 dst=2001:db8::1 sport=40000 dport=53 [UNREPLIED] "
    "src=fd00:a::2 dst=2001:db8::9 sport=53 dport=40000 mark=0 use=1\n"
    "tcp      6 9 ESTABLISHED src=2001:db8::9 dst=fd00:a::2 sport=4 dport=80 packets=1 bytes=60 "
    "src=fd00:a::2 dst=2001:db8::9 sport=80 dport=4 packets=1 bytes=60 [ASSURED] mark=0 use=1\n"
    "icmpv6   58 29 src=2001:db8::9 dst=fd00:a::2 type=128 code=0 id=7 "
    "src=fd00:a::2 dst=2001:db8::9 type=129 code=0 id=7 mark=0 use=1\n"
    "gre      47 29 src=2001:db8::9 dst=fd00:a::2 srckey=0x1 dstkey=0xff [UNREPLIED] "
    "src=fd00:a::2 dst=2001:db8::9 srckey=0xff dstkey=0x1 mark=0 use=1\n"
    "unknown  4 599 src=2001:db8::9 dst=fd00:a::2 src=fd00:a::2 dst=2001:db8::9 mark=0 use=1\n"
)


def kept_rules(data: bytes) -> None:
    """Any content of the file of saved rules raises ValueError or TypeError, or is a set of our own
    rules that does not change when it is written and parsed."""
    try:
        rules = parse_saved_rules(data.decode("utf-8", "replace"))
    except (ValueError, TypeError):
        return
    text = format_ruleset(rules)
    for line in text.split("\n")[:-1]:
        assert GRAMMAR.fullmatch(_CHAIN.sub("IPV6NAT-CT", line).replace("+ ", " ")), line
    assert parse_saved_rules(text) == rules


def host(data: bytes) -> None:
    """With any output of the host's tools about rules and routes nothing raises, and each finding
    is a text with a command."""
    told = read_json(data)
    told = told if isinstance(told, dict) else {}

    def said(tool: str, *words: str, **_: Any) -> str:
        answer = told.get(tool if tool != "ip6tables-nft" else words[-1], "")
        return answer if isinstance(answer, str) else json.dumps(answer)

    with mock.patch.object(tools, "output_of", said):
        facts = host_rules.add_firewall_facts(HostFacts(client_interfaces=("eth0", "eth1")))
        host_facts.ra_default_routes()
    seen = evaluate(facts, NETWORKS)
    for finding in seen:
        assert finding.problem.strip()
        assert finding.command or finding.severity is Severity.NOTE


def announcements(data: bytes) -> None:
    """Lines of `nft monitor`, cut into any pieces, report a foreign write as the whole lines do."""
    size, text = (data[0] or 1) if data else 1, data[1:]
    ours = [int(pid) for pid in re.findall(rb" by process (\d+)", text) if int(pid) % 2 == 0]
    whole = MonitorOutput(deque(ours)).has_foreign_write(text)
    cut = MonitorOutput(deque(ours))
    told = [cut.has_foreign_write(text[at : at + size]) for at in range(0, len(text), size)]
    assert any(told) == whole


NFT = {
    "nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "f", "handle": 1}},
        {
            "chain": {
                "family": "inet",
                "table": "f",
                "name": "forward",
                "handle": 1,
                "type": "filter",
                "hook": "forward",
                "prio": 0,
                "policy": "drop",
            }
        },
        {"chain": {"family": "inet", "table": "f", "name": "more", "handle": 2}},
        *(
            {"rule": {"family": "inet", "table": "f", "chain": chain, "handle": 3, "expr": expr}}
            for chain, expr in (
                (
                    "forward",
                    [
                        {
                            "match": {
                                "op": "==",
                                "left": {"meta": {"key": "iifname"}},
                                "right": {"set": ["eth0", "br-x"]},
                            }
                        },
                        {"jump": {"target": "more"}},
                    ],
                ),
                (
                    "more",
                    [
                        {
                            "match": {
                                "op": "in",
                                "left": {"&": [{"ct": {"key": "status"}}, "dnat"]},
                                "right": 0,
                            }
                        },
                        {"counter": {"packets": 0, "bytes": 0}},
                        {"drop": None},
                    ],
                ),
                (
                    "more",
                    [
                        {
                            "match": {
                                "op": "==",
                                "left": {"fib": {"result": "oif", "flags": ["saddr", "iif"]}},
                                "right": False,
                            }
                        },
                        {"goto": {"target": "more"}},
                    ],
                ),
            )
        ),
    ]
}
ROUTES = [{"dst": "default", "gateway": "fe80::1", "dev": "eth0", "nexthops": [{"dev": "eth1"}]}]
TOLD = {
    "nft": NFT,
    "ip": ROUTES,
    "FORWARD": "-P FORWARD DROP\n-A FORWARD -j DOCKER-USER\n",
    "ip6tables-legacy": "-P FORWARD ACCEPT\n-N DOCKER\n",
}
MONITORED = (
    b"\x05add rule ip6 filter FORWARD counter\n"
    b"# new generation 12 by process 41 (ip6tables-nft-)\n"
    b"delete rule ip nat X handle 4\n# new generation 13 by process 42 (x)\n"
)
WORDS = tuple(
    word.encode()
    for word in (
        "*filter\n",
        "*nat\n",
        "*mangle\n",
        "COMMIT\n",
        ":IPV6NAT-FORWARD - [0:0]\n",
        ":DOCKER-X - [0:0]\n",
        "-A FORWARD ",
        "-A DOCKER ",
        "-A POSTROUTING -s ",
        "-j DOCKER-USER",
        "-j IPV6NAT-FORWARD",
        "-m comment --comment ipv6natd ",
        ' --comment "',
        "\n-x",
        " -g DOCKER",
        " ! -o br-0123456789ab -j MASQUERADE",
        "-m conntrack --ctstate RELATED,ESTABLISHED",
        "[1:1] -A IPV6NAT-DNAT ",
    )
)
TARGETS = (
    Target(
        name="save-text",
        check=save_text,
        seeds=tuple(each.encode() for each in (STANDING, DOCKERS)),
        words=WORDS,
    ),
    Target(
        name="conntrack",
        check=conntrack,
        seeds=tuple(map(message_body, FLOWS.splitlines())),
        words=(b"\x14\x00\x03\x00", b"\x14\x00\x04\x00", b"\x1c\x00\x02\x80", b"\x06\x00\x12\x00"),
    ),
    Target(
        name="a-comment",
        check=a_comment,
        seeds=(b"a\n-A FORWARD -m comment --comment ipv6natd -j IPV6NAT-FORWARD\nCOMMIT\n*nat\n",),
        words=WORDS,
    ),
    Target(name="kept-rules", check=kept_rules, seeds=(OURS.encode(),), words=WORDS),
    Target(name="host", check=host, seeds=(json.dumps(TOLD).encode(),), structured=True),
    Target(
        name="announcements",
        check=announcements,
        seeds=(MONITORED,),
        words=(b"# new generation ", b" by process ", b" ip6 ", b" inet ", b"\n"),
    ),
)
