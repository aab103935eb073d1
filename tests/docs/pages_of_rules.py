"""docs/rules.md, built from the reviewed rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import groupby

from tests import ROOT
from tests.unit.policy.test_ruleset import GOLDEN, PROXY, SITUATIONS

RULES_MD = ROOT / "docs" / "rules.md"

INTRODUCTION = """\
# The rules

Which rules ipv6natd writes for each kind of network, and why. Written by
`UPDATE_DOCS=1 .venv/bin/pytest tests/docs/test_docs.py` from the rules in `tests/golden`; a test
fails when it is out of date.

In all examples `br-a` is the bridge of the network with the subnet fd00:a::/64, and fd00:a::2 is
the container on it. "Proxy" is Docker's userland proxy.
"""

KINDS = {
    "nothing": "No network with IPv6: DOCKER-USER stands all the same, since users lean on it.",
    "one-network": "A network with IPv6 and nothing published: closed inwards, masqueraded "
    "outwards.",
    "one-port": "A TCP port published on every address of the host (`-p 8080:80`).",
    "one-udp-port": "A UDP port published (`-p 5353:53/udp`): with the proxy on, neighbours are "
    "redirected to it.",
    "one-sctp-port": "An SCTP port published (`-p 36412:36412/sctp`), as TCP is.",
    "internal": "An internal network (`--internal`): nothing enters or leaves, and a published "
    "port gets no rule.",
    "icc-off": "A network whose containers may not talk to each other (`enable_icc=false`).",
    "internal-icc-off": "An internal network whose containers may not talk to each other either.",
    "masquerade-off": "A network whose containers show their own addresses outside "
    "(`enable_ip_masquerade=false`).",
    "host-ipv6": "A network that speaks to the outside from one address "
    "(`com.docker.network.host_ipv6=2001:db8::1`).",
    "specific-address": "One port published on one address of the host and, beside it, on all "
    "others.",
    "loopback": "A port published on [::1], which only the proxy can serve.",
    "run": "Ten thousand ports that keep their numbers (`-p 10000-19999:10000-19999/udp`) are one "
    "rule.",
    "shifted-run": "Ports that do not keep their numbers (`-p 6000-6003:7000-7003`) are one rule "
    "each.",
    "two-subnets": "A network with two IPv6 subnets.",
    "two-networks-and-internal": "Two networks with published ports beside an internal one.",
    "routed": "`gateway_mode_ipv6=routed`: no NAT; published ports and ICMPv6 are open by the "
    "container's own address.",
    "nat-unprotected": "`gateway_mode_ipv6=nat-unprotected`: published ports by NAT, and every "
    "port by the container's own address.",
    "isolated": "`gateway_mode_ipv6=isolated`: as closed as an internal network.",
    "trusted-interface": "`trusted_host_interfaces=ext0`: published ports are open by the "
    "container's own address, too, for what comes in there.",
    "allow-direct-routing": "`allow_direct_routing = true` in our configuration: the same by any "
    "interface.",
    "accept-fwmark": '`accept_fwmark = "0x1/0x1"` in our configuration: what carries the mark is '
    "accepted.",
    "beside-the-engines": "A network of ours beside `br-b`, whose rules the engine writes itself.",
    "lan-inside": "A network whose subnet holds a LAN of the host's, as the routes say "
    "(fd00:9:0:5::/64 by `ext0`).",
    "routed-behind": "A network with a container that is a router: the host routes 2001:db8:9::/64 "
    "to its bridge.",
    "many-ports": "More than a hundred rules for ports stand in chains of 32 ports each, so that "
    "a new connection passes its neighbours' rules only, and a new port writes one of these "
    "chains. A run that keeps its numbers is one rule all the same, in the first chain that is "
    "wide enough.",
    "many-networks": "From 17 networks on, an open connection finds its bridge by the letters of "
    "its name.",
}

JUMP = r"-m comment --comment ipv6natd -j"
FORWARD = "-A IPV6NAT-FORWARD"
SHAPES = {
    rf"-A FORWARD {JUMP} DOCKER-USER": "First of all the users' own rules.",
    rf"-A FORWARD {JUMP} IPV6NAT-FORWARD": "Then ours, before those of others, so that a DROP "
    "which somebody appends changes nothing.",
    rf"-A INPUT {JUMP} IPV6NAT-INPUT": "Without the proxy, clients that cannot be forwarded are "
    "refused there. With it, it hears no forged datagram.",
    rf"{FORWARD} -m mark --mark MARK -j ACCEPT": "The administrator has marked it as wanted.",
    rf"{FORWARD} ! -i BRIDGE -o BRIDGE -j DROP": "A network is closed to all that comes from "
    "elsewhere and was not accepted above; a closed network before all else, its replies too.",
    rf"{FORWARD} -i BRIDGE ! -o BRIDGE -j DROP": "Nothing leaves a closed network. By interface "
    "and not by address, so that a forged source does not leave either.",
    rf"{FORWARD} -o BRIDGE -m addrtype --src-type LOCAL -j DROP": "What is forwarded to a "
    "container never has an address of the host for its source.",
    rf"{FORWARD} -m conntrack --ctstate ESTABLISHED -j IPV6NAT-CT": "Flows that were let "
    "in skip the rest, so an open connection does not pay for the number of networks.",
    rf"{FORWARD} -j IPV6NAT-SRC": "Everything else is asked for its source, before any rule that "
    "accepts. A forged first packet would have conntrack take what its sender says next for "
    "answers.",
    rf"{FORWARD} -j IPV6NAT-DST": "And for where it goes.",
    rf"{FORWARD} -i BRIDGE ! -o BRIDGE -m addrtype --src-type LOCAL -j DROP": "Nor has what a "
    "container sends.",
    rf"{FORWARD} ! -s NET -i BRIDGE ! -o BRIDGE -j DROP": "A container sends with its own "
    "network's sources only, so it cannot pose as a neighbour of the host.",
    rf"{FORWARD} -i BRIDGE ! -o BRIDGE -j IPV6NAT-OWN-BRIDGE": "The same where there are more "
    "prefixes than one: subnets, and what the host routes to the bridge.",
    rf"{FORWARD} -m conntrack --ctstate RELATED -j IPV6NAT-CT": "An error about an open flow is "
    "let in, but not from a forged source.",
    r"-A IPV6NAT-OWN-BRIDGE -s NET -j RETURN": "A prefix of the network, or one that the host "
    "routes "
    "to a container of it.",
    r"-A IPV6NAT-OWN-BRIDGE -j DROP": "Any other.",
    r"-A IPV6NAT-SRC -s ::ffff:0.0.0.0/96 -j DROP": "To a program such a peer is one of IPv4, its "
    "own gateway there for one.",
    r"-A IPV6NAT-SRC -s NET -i INTERFACE -j RETURN": "A part of a network's subnet that the host "
    "routes elsewhere, a LAN of its own: there it is no forgery.",
    r"-A IPV6NAT-SRC -s NET -j DROP": "And by any other interface it is one.",
    r"-A IPV6NAT-SRC -s NET ! -i BRIDGE -j DROP": "What has a source inside a network comes in by "
    "its bridge. Networks of the engine's are here, too: ours could reach them.",
    r"-A IPV6NAT-DST -d NET -o INTERFACE -j RETURN": "A LAN of the host's inside a network's "
    "subnet.",
    r"-A IPV6NAT-DST -d NET ! -o BRIDGE -j DROP": "What is for a network goes out by its bridge. "
    "Where bridged packets pass netfilter, what two neighbours elsewhere say to each other would "
    "make an entry for a container here.",
    rf"{FORWARD} -o BRIDGE -m conntrack --ctstate DNAT -j ACCEPT": "What a published port has "
    "sent here; so no published port needs a filter rule of its own.",
    rf"{FORWARD} -d ADDRESS (?:! -i BRIDGE|-i INTERFACE) -o BRIDGE -p PROTOCOL --dport PORT "
    "-j ACCEPT": "A published port that an option opens by the container's own address.",
    rf"{FORWARD} ! -i BRIDGE -o BRIDGE -p ipv6-icmp -j ACCEPT": "Routed containers can be pinged "
    "and hear of errors on the way.",
    rf"{FORWARD} ! -i BRIDGE -o BRIDGE -j ACCEPT": "nat-unprotected opens everything.",
    rf"{FORWARD} -i BRIDGE -o BRIDGE -j (?:ACCEPT|DROP)": "Between neighbours, where br_netfilter "
    "shows them to us: as enable_icc says.",
    rf"{FORWARD} -o BRIDGE -j RETURN": "The engine's own rules decide who comes into a network "
    "that it manages.",
    rf"{FORWARD} -i BRIDGE ! -o BRIDGE -m conntrack --ctstate INVALID -j DROP": "The kernel does "
    "not translate what conntrack cannot place: it would leave with the container's address.",
    rf"{FORWARD} -i BRIDGE -j ACCEPT": "Containers may go out; behind every DROP, so that out of "
    "one network is not into the next.",
    r"-A (?:IPV6NAT-CT|BRIDGES) -s NET ! -i BRIDGE -o BRIDGE -j DROP": "Where bridged packets "
    "pass netfilter conntrack knows what neighbours say to each other; nobody else is part of it.",
    r"-A (?:IPV6NAT-CT|BRIDGES) -o BRIDGE -j IPV6NAT-SRC": "The same where there are more prefixes "
    "than one.",
    r"-A (?:IPV6NAT-CT|BRIDGES) -[io] BRIDGE -m addrtype ! --src-type LOCAL -j ACCEPT": "Both "
    "directions of a flow that was let in, but nothing that poses as the host. Closed networks are "
    "not here.",
    r"-A (?:IPV6NAT-CT|BRIDGES) -[io] PATTERN -j BRIDGES": "Where there are many networks: all "
    "bridges whose names begin so.",
    r"-A (?:IPV6NAT-INPUT|PORTS) (?:-d ADDRESS )?-p PROTOCOL --dport PORT -j IPV6NAT-PROXY": "A "
    "published UDP port at which the proxy listens: it hands on what it hears as if the gateway "
    "had "
    "sent it.",
    r"-A IPV6NAT-PROXY -i lo -j RETURN": "The host's own programs.",
    r"-A IPV6NAT-PROXY -m conntrack --ctstate INVALID -j DROP": "A datagram that says 0 of its "
    "length is none to conntrack, so nothing translates it, and one to the proxy.",
    r"-A IPV6NAT-PROXY -m conntrack --ctdir REPLY -j DROP": "Who poses as the host to a client "
    "makes an entry, by which what the client says is an answer, and is not translated.",
    r"-A IPV6NAT-INPUT ! -i lo -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN "
    r"-m conntrack --ctdir REPLY -j DROP": "The same over TCP, for the proxy of any port.",
    r"-A IPV6NAT-PROXY -m addrtype ! --dst-type LOCAL -j DROP": "What is for a group or an anycast "
    "address is not translated, and a proxy that listens on all addresses hears it.",
    r"-A IPV6NAT-PROXY -j IPV6NAT-SRC": "Everybody else by their source, as above.",
    r"-A IPV6NAT-INPUT -m conntrack --ctstate NEW -j IPV6NAT-HOST": "A forged first packet to the "
    "host makes an entry, too.",
    r"-A IPV6NAT-HOST -i lo -j RETURN": "What the host says to itself.",
    r"-A IPV6NAT-HOST -m addrtype --src-type LOCAL -m addrtype --dst-type LOCAL -j DROP": "Comes "
    "by no other interface. What the host sends to a group comes back, and is let in.",
    r"-A IPV6NAT-HOST -j IPV6NAT-SRC": "Everybody else by their source, as above.",
    r"-A IPV6NAT-HOST -p ah TRACKED PORT -j DROP": "With the proxy on: "
    "conntrack looks for ports behind an authentication header, and rules of nf_tables do not. So "
    "nothing would translate such a first packet, and the proxy would get all that follow.",
    r"-A IPV6NAT-INPUT (?:-d ::1/128|-s fe80::/10) -j IPV6NAT-REJ": "Where there are many ports: "
    "nothing else that the host hears, open connections least of all, asks for a port here.",
    r"-A (?:IPV6NAT-DNAT|IPV6NAT-REJ) -p TRANSPORT -j PORTS": "Where there are many ports: those "
    "of one protocol.",
    r"-A PORTS -p PROTOCOL --dport PORT -j PORTS": "All ports of 4096 in a row, then "
    "of 512, then of 32.",
    r"-A (?:IPV6NAT-INPUT|PORTS) -d ::1/128 -p PROTOCOL --dport PORT -j REJECT": "[::1] cannot be "
    "forwarded: without the proxy the client is told at once instead of waiting.",
    r"-A (?:IPV6NAT-INPUT|PORTS) -s fe80::/10 (?:-d ADDRESS )?-p PROTOCOL --dport PORT "
    "-j REJECT": "The same for link-local clients, which the kernel does not route.",
    rf"-A PREROUTING -m addrtype --dst-type LOCAL {JUMP} IPV6NAT-PRE": "Any address of the host, "
    "also one that it gets later.",
    rf"-A OUTPUT ! -d ::1/128 -m addrtype --dst-type LOCAL {JUMP} IPV6NAT-DNAT": "The host's own "
    "programs; never [::1], whose answers the kernel would drop.",
    rf"-A POSTROUTING {JUMP} IPV6NAT-POST": "Which source a packet leaves with.",
    r"-A IPV6NAT-DNAT -s fe80::/10 -j RETURN": "Link-local clients are not routed: DNAT could only "
    "lose them.",
    r"-A IPV6NAT-PRE -i BRIDGE -j RETURN": "A closed network does not get out by way of a "
    "published port.",
    r"-A IPV6NAT-PRE "
    r"(?:-m addrtype --src-type LOCAL|-s ::ffff:0.0.0.0/96|-s NET|-s NET ! -i BRIDGE) "
    r"-j RETURN": "A forged source is dropped in FORWARD. Here it is passed over as well: somebody "
    "may accept it in DOCKER-USER.",
    r"-A IPV6NAT-PRE -s NET -i INTERFACE -j IPV6NAT-DNAT": "A LAN of the host's inside a network's "
    "subnet.",
    r"-A IPV6NAT-PRE -j IPV6NAT-DNAT": "Everybody else.",
    r"-A (?:IPV6NAT-DNAT|PORTS) (?:-d ADDRESS )?-i BRIDGE -p PROTOCOL --dport PORT "
    "-j REDIRECT": "The proxy would answer a neighbour's datagram from another address than it "
    "was sent to; redirected, "
    "the answer is put right on its way back.",
    r"-A (?:IPV6NAT-DNAT|PORTS) (?:-d ADDRESS )?(?:! -i BRIDGE )?-p PROTOCOL --dport PORT -j DNAT "
    "--to-destination TO": "A published port, or a run of them that keeps its numbers. With the "
    "proxy on, neighbours are its business. One address of the host comes before all addresses.",
    r"-A IPV6NAT-POST -s NET ! -o BRIDGE -m addrtype ! --src-type LOCAL -j SOURCE": "What goes out "
    "carries an address of the host. The host's own address on the bridge stays as it is.",
    r"-A IPV6NAT-POST -s NET -j RETURN": "A LAN of the host's inside the network's subnet keeps "
    "its "
    "addresses.",
    r"-A IPV6NAT-POST -s NET -o BRIDGE -m conntrack --ctstate DNAT -j SOURCE": "Without the "
    "proxy: a "
    "neighbour that came by a published port is answered by way of the host. For a LAN inside the "
    "subnet always: the container takes it for a neighbour.",
}
"""Each shape of a rule, in the order of the tables, and why it is there."""

WORDS = {
    "BRIDGE": r"br-[a-z]+",
    "BRIDGES": r"IPV6NAT-(?:IN|OUT)-br-[a-z]+",
    "PATTERN": r"br-[a-z]*\+",
    "PORTS": r"IPV6NAT-(?:REJ-)?(?:TCP|UDP)(?:-\d+-\d+)?",
    "TRANSPORT": r"(?:tcp|udp)",
    "INTERFACE": r"ext0",
    "ADDRESS": r"[0-9a-f:]+/128",
    "NET": r"[0-9a-f:]+/(?:48|64|80)",
    "TRACKED": r"-m conntrack --ctproto (?:tcp|udp|sctp) -m conntrack --ctorigdstport",
    "MARK": r"0x\w+/0x\w+",
    "PROTOCOL --dport": r"(tcp|udp|sctp) -m (?:tcp|udp|sctp) --dport",
    "PORT": r"\d+(?::\d+)?",
    "REJECT": r"REJECT --reject-with (?:tcp-reset|icmp6-port-unreachable)",
    "TO": r"\S+",
    "SOURCE": r"(?:MASQUERADE|SNAT --to-source \S+)",
}


LONG = 20
"""Rules of one chain that are all shown."""


def reasons(rule: str) -> list[str]:
    """The shapes that a rule has: one, if the table above is right."""
    return [shape for shape in SHAPES if _pattern(shape).fullmatch(rule)]


def rules_md() -> str:
    """The whole page."""
    return "\n".join(_lines())


@cache
def _pattern(shape: str) -> re.Pattern[str]:
    for word, pattern in WORDS.items():
        shape = re.sub(rf"\b{word}\b", lambda _, new=pattern: new, shape)  # type: ignore[misc]
    return re.compile(shape)


def _shown(shape: str) -> str:
    """The shape as a person reads it: [optional] and (one|another)."""
    shape = re.sub(r"\(\?:([^)|]*?) \)\?", r"[\1] ", shape)
    return re.sub(r"\(\?:([^)]*)\)", r"(\1)", shape).replace("-[io]", "(-i|-o)")


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    yield "## Why each rule is there\n"
    for shape, why in SHAPES.items():
        yield f"- `{_shown(shape)}`  \n  {why}"
    yield ""
    for situation in SITUATIONS:
        yield f"## {situation}\n"
        yield f"{KINDS[situation]}\n"
        texts = {proxy: (GOLDEN / f"{situation}.{proxy}.txt").read_text() for proxy in PROXY}
        if len(set(texts.values())) == 1:
            yield from _block("Proxy on or off", texts["proxy-on"])
        else:
            yield from _block("Proxy on", texts["proxy-on"])
            yield from _block("Proxy off", texts["proxy-off"])


def _block(title: str, text: str) -> Iterator[str]:
    rules = [line for line in text.splitlines() if line.startswith(("*", "-A"))]
    yield f"{title}:\n"
    yield "\n".join(["```", *_shortened(rules), "```", ""])


def _shortened(rules: list[str]) -> Iterator[str]:
    """Without the middle of long chains."""
    for _, group in groupby(rules, key=lambda rule: rule.split()[:2]):
        chain = list(group)
        if len(chain) <= LONG:
            yield from chain
        else:
            yield from chain[:3]
            yield f"# {len(chain) - 4} more like these"
            yield chain[-1]
