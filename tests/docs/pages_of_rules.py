"""The text of docs/rules.md: the reviewed rules of tests/golden, each with its reason."""

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

The rules that ipv6natd writes for each kind of network, with the reason for each rule.
`UPDATE_DOCS=1 .venv/bin/pytest tests/docs/test_docs.py` writes this page from the rules in
`tests/golden`; a test fails if the page is out of date.

In all examples `br-a` is the bridge of the network with the subnet fd00:a::/64, and fd00:a::2 is
the container on this network. "Proxy" is Docker's userland proxy. A "closed" network is an internal
or isolated network.
"""

KINDS = {
    "nothing": "No network with IPv6. DOCKER-USER exists nevertheless, because users put their "
    "rules there.",
    "one-network": "A network with IPv6 and without published ports: closed to the outside, and "
    "outgoing packets are masqueraded.",
    "one-port": "A TCP port published on every address of the host (`-p 8080:80`).",
    "one-udp-port": "A published UDP port (`-p 5353:53/udp`): with the proxy on, datagrams of "
    "containers on the same bridge are redirected to the proxy.",
    "one-sctp-port": "A published SCTP port (`-p 36412:36412/sctp`), like TCP.",
    "internal": "An internal network (`--internal`): no packet enters or leaves, and a published "
    "port gets no rule.",
    "icc-off": "A network whose containers must not reach each other (`enable_icc=false`).",
    "internal-icc-off": "An internal network whose containers must not reach each other.",
    "masquerade-off": "A network whose containers keep their own addresses outside "
    "(`enable_ip_masquerade=false`).",
    "host-ipv6": "A network whose outgoing packets get one fixed source address "
    "(`com.docker.network.host_ipv6=2001:db8::1`).",
    "specific-address": "A port published on one address of the host, and the same host "
    "port published with another container port on all other addresses.",
    "loopback": "A port published on [::1], which only the proxy can serve.",
    "run": "A range of ten thousand ports with equal host and container ports (`-p "
    "10000-19999:10000-19999/udp`) is one rule.",
    "shifted-run": "A range with different host and container ports (`-p 6000-6003:7000-7003`) is "
    "one rule per port.",
    "two-subnets": "A network with two IPv6 subnets.",
    "two-homed": "A container on two networks: its default route leaves by `br-b`, so its replies "
    "from fd00:a::2 come in there.",
    "two-networks-and-internal": "Two networks with published ports, and an internal network.",
    "routed": "`gateway_mode_ipv6=routed`: no NAT; published ports and ICMPv6 are open on the "
    "container's own address.",
    "nat-unprotected": "`gateway_mode_ipv6=nat-unprotected`: published ports by NAT, and every "
    "port on the container's own address.",
    "isolated": "`gateway_mode_ipv6=isolated`: closed like an internal network.",
    "trusted-interface": "`trusted_host_interfaces=ext0`: published ports are open on the "
    "container's own address too, for packets that come in by this interface.",
    "allow-direct-routing": "`allow_direct_routing = true` in our configuration: the same for "
    "every interface.",
    "accept-fwmark": '`accept_fwmark = "0x1/0x1"` in our configuration: packets with this mark are '
    "accepted.",
    "beside-the-engines": "A network of ipv6natd, and the networks `br-b` and `br-p` (internal, "
    "outside `nat_prefixes`), whose rules the engine writes itself.",
    "ipvlan": "A network of ipv6natd, and an ipvlan network of the engine.",
    "closed-without-ipv6": "Published ports, and an internal network without IPv6: a container can "
    "send IPv6 packets there too.",
    "lan-inside": "A network whose subnet contains a LAN of the host: the host has a route for "
    "fd00:9:0:5::/64 by `ext0`.",
    "routed-behind": "A network with a container that is a router: the host routes 2001:db8:9::/64 "
    "to the network's bridge.",
    "many-ports": "More than a hundred rules for ports are divided into chains of 32 ports each: a "
    "new connection passes only the rules of one chain, and a new port rewrites one chain. A range "
    "with equal host and container ports stays one rule, in the first chain that is wide enough.",
    "many-networks": "With more than 32 networks, packets find the rules of their bridge by a tree "
    "of bridge name prefixes, and the rules of their source by its first bits. So neither an open "
    "connection nor a new one passes the rules of all networks.",
}

JUMP = r"-m comment --comment ipv6natd -j"
FORWARD = "-A (?:IPV6NAT-FORWARD|BRIDGES)"
SHAPES = {
    rf"-A PREROUTING {JUMP} IPV6NAT-SRC": "The source of every packet that comes in is checked "
    "before conntrack. After a forged first packet conntrack would take the attacker's next "
    "packets for replies.",
    r"-A IPV6NAT-SRC -i lo -j RETURN": "Packets from the host to itself.",
    r"-A IPV6NAT-SRC -s ::ffff:0.0.0.0/96 -j DROP": "A program would take this source for an "
    "IPv4 peer, for example for its own gateway.",
    r"-A IPV6NAT-SRC -s ff00::/8 -j DROP": "No genuine packet has a multicast group as its source. "
    "With br_netfilter, a bridge would create an entry for it.",
    r"-A IPV6NAT-SRC ! -d ff00::/8 -m frag -j DROP": "A fragment inside another one. The kernel "
    "would put it together behind INPUT, whose rules do not see its port.",
    r"-A IPV6NAT-SRC -m frag -m conntrack --ctstate INVALID -j DROP": "The same for a group. Only "
    "the host's own multicast packets come back in fragments.",
    r"-A IPV6NAT-SRC -s fe80::/10 ! -d ff00::/8 -m addrtype --src-type LOCAL,ANYCAST "
    "--limit-iface-in -j DROP": "A packet with the host's own link-local address of this link is "
    "forged. A router may have the address that the host has on another link.",
    r"-A IPV6NAT-SRC ! -d ff00::/8 -m addrtype --src-type LOCAL,ANYCAST -j IPV6NAT-SRC-HOST": ""
    "With many networks: only such packets pass the rules of the bridges.",
    r"-A IPV6NAT-SRC -m addrtype --dst-type LOCAL -j IPV6NAT-SRC-TO-HOST": "The same for packets "
    "to the host.",
    r"-A (?:IPV6NAT-SRC|BRIDGES) ! -d ff00::/8 -i BRIDGE -m addrtype --src-type LOCAL,ANYCAST "
    "-j DROP": "A packet from a container never has an address of the host as its source. Only "
    "the host's own "
    "multicast packets come back by a bridge.",
    r"-A IPV6NAT-SRC -s fe80::/10 -j RETURN": "Link-local packets do not leave their link.",
    r"-A (?:IPV6NAT-SRC|BRIDGES) ! -s NET -i BRIDGE -m addrtype --dst-type LOCAL -j DROP": ""
    "A container sends to the host with a source of its own network. With br_netfilter the bridge "
    "confirms the entry "
    "of a broadcast frame, whatever INPUT does.",
    r"-A (?:IPV6NAT-SRC|BRIDGES) -i BRIDGE -m addrtype --dst-type LOCAL -j "
    "IPV6NAT-SENT-BRIDGE": "The same for a network with several prefixes, and for a bridge by "
    "which containers on several networks "
    "send replies.",
    r"-A IPV6NAT-SRC ! -d ff00::/8 -j IPV6NAT-SRC-OUT": "The next rules, for packets that could "
    "leave a closed network.",
    r"-A IPV6NAT-SRC-OUT ! -s NET ! -d NET -i BRIDGE -j DROP": "A container of a closed network "
    "sends to other networks with a source of its own network only: the kernel answers a packet "
    "without a route, or with a hop limit of 1, before FORWARD, and its ICMPv6 error has a part of "
    "the packet.",
    r"-A IPV6NAT-SRC ! -d ff00::/8 -p ah -m pkttype --pkt-type (?:broadcast|multicast) "
    r"-j DROP": "A bridge would confirm the entry of such a packet with an authentication header, "
    "before INPUT drops it.",
    r"-A IPV6NAT-SRC ! -d ff00::/8 -m pkttype --pkt-type (?:broadcast|multicast) "
    "-j IPV6NAT-SRC-FRAMES": "A packet for one host in an Ethernet frame for all.",
    r"-A IPV6NAT-SRC-FRAMES -i veth\+ -j DROP": "A frame that bridges do not forward, as of LLDP: "
    "its packet comes in by the bridge's port for the container, and matches no rule for a bridge.",
    r"-A (?:IPV6NAT-SRC-FRAMES|BRIDGES) -i BRIDGE -j DROP": "A container sends such a frame only "
    "to forge: with br_netfilter, the bridge confirms the entry, whatever the filter table does.",
    r"-A IPV6NAT-SENT-BRIDGE -s (?:NET|ADDRESS) -j RETURN": "A source of packets that come in by "
    "this bridge.",
    r"-A IPV6NAT-SENT-BRIDGE -j DROP": "Any other source.",
    r"-A IPV6NAT-SRC -s NET -i INTERFACE -j RETURN": "A part of a network's subnet that the host "
    "routes to another interface, for example a LAN. From this interface the source is not forged.",
    r"-A IPV6NAT-SRC -s NET -j DROP": "From any other interface the source is forged.",
    r"-A (?:IPV6NAT-SRC|SOURCES) -s NET ! -i BRIDGE -j DROP": "A packet with a source inside a "
    "network must come in by the network's bridge. Networks of the engine are included: their "
    "packets could reach our networks.",
    r"-A (?:IPV6NAT-SRC|SOURCES) -s NET ! -i BRIDGE -j IPV6NAT-FROM-BRIDGE": "The same for a "
    "network with a container whose default route is on another network.",
    r"-A IPV6NAT-FROM-BRIDGE -s ADDRESS -i BRIDGE -j RETURN": "A reply of such a container: it "
    "leaves by the container's default route.",
    r"-A IPV6NAT-FROM-BRIDGE -j DROP": "Any other packet.",
    r"-A (?:IPV6NAT-SRC|IPV6NAT-POST|SOURCES) -s FIRST-BITS -j SOURCES": "With many "
    "networks: all subnets that begin with these bits.",
    rf"-A FORWARD {JUMP} DOCKER-USER": "First the users' own rules.",
    rf"-A FORWARD {JUMP} IPV6NAT-FORWARD": "Then our rules. The order of "
    "the rules, above, says which rules of others come before them.",
    rf"-A INPUT {JUMP} IPV6NAT-INPUT": "Without the proxy, clients that cannot be forwarded are "
    "rejected here. With the proxy, forged datagrams to it are dropped here.",
    rf"{FORWARD} -m mark --mark MARK -j ACCEPT": "The administrator has marked this packet as "
    "accepted.",
    rf"{FORWARD} ! -i BRIDGE -o BRIDGE -j DROP": "A network is closed to packets from outside that "
    "no rule above accepted. For a closed network this rule comes first, and so drops replies too.",
    rf"{FORWARD} -i BRIDGE ! -o BRIDGE -j DROP": "No packet leaves a closed network. The rule "
    "matches the interface and not the address, so that forged sources do not leave either.",
    rf"{FORWARD} ! -s fe80::/10 -o BRIDGE -m addrtype --src-type LOCAL -j DROP": "A packet that is "
    "forwarded to a container never has an address of the host as its source.",
    rf"{FORWARD} -m conntrack --ctstate ESTABLISHED -j IPV6NAT-CT": "Packets of established "
    "connections skip the remaining rules: the cost of an open connection does not depend on the "
    "number of networks.",
    rf"{FORWARD} ! -s NET -i BRIDGE ! -o BRIDGE -j DROP": "A container sends only with the sources "
    "of its own network, so the container cannot forge the address of another machine near the "
    "host.",
    rf"{FORWARD} -i BRIDGE -m conntrack --ctstate NEW,INVALID,UNTRACKED -j IPV6NAT-NEW-BRIDGE": ""
    "The next rules, for new packets that come in by this bridge.",
    r"-A IPV6NAT-NEW-BRIDGE -s ADDRESS -j DROP": "A container whose default route is on another "
    "network sends only replies with this source. A new packet is of a neighbour on the default "
    "route.",
    rf"{FORWARD} -i BRIDGE ! -o BRIDGE -j IPV6NAT-OWN-BRIDGE": "The same for a network with "
    "several prefixes: its subnets, and the prefixes that the host routes to its bridge.",
    rf"{FORWARD} -m conntrack --ctstate RELATED -j IPV6NAT-CT": "An ICMPv6 error about an open "
    "flow is accepted, but not from a forged source.",
    r"-A IPV6NAT-OWN-BRIDGE -s NET -j RETURN": "A prefix of the network, or one that the host "
    "routes to a container of it.",
    r"-A IPV6NAT-OWN-BRIDGE -j DROP": "Any other source.",
    rf"{FORWARD} -o BRIDGE -m conntrack --ctstate DNAT -j ACCEPT": "Packets that DNAT of a "
    "published port sent here, so a published port needs no filter rule of its own.",
    rf"{FORWARD} -d ADDRESS (?:! -i BRIDGE|-i INTERFACE) -o BRIDGE -p PROTOCOL --dport PORT "
    "-j ACCEPT": "A published port that an option opens on the container's own address.",
    rf"{FORWARD} ! -i BRIDGE -o BRIDGE -p ipv6-icmp -j ACCEPT": "Containers of a routed network "
    "receive pings and ICMPv6 errors.",
    rf"{FORWARD} ! -i BRIDGE -o BRIDGE -j ACCEPT": "nat-unprotected opens everything.",
    rf"{FORWARD} -i BRIDGE -o BRIDGE -j (?:ACCEPT|DROP)": "Between containers on one bridge, as "
    "enable_icc says. Only with br_netfilter do such packets pass this rule.",
    rf"{FORWARD} -o BRIDGE -j RETURN": "The engine's own rules filter the packets into a network "
    "that the engine manages.",
    rf"{FORWARD} -i BRIDGE ! -o BRIDGE -m conntrack --ctstate INVALID -j DROP": "The kernel does "
    "not translate packets that conntrack calls invalid: they would leave with the container's "
    "address.",
    rf"{FORWARD} -i BRIDGE -j ACCEPT": "Containers may send to the outside. This rule comes after "
    "every DROP, so it permits no packet from one network into another.",
    r"-A (?:IPV6NAT-CT|BRIDGES) -o BRIDGE -m addrtype ! --src-type LOCAL -j ACCEPT": "Established "
    "packets to a container, but not from a source of the host. Closed networks have no such rule.",
    r"-A (?:IPV6NAT-CT|BRIDGES) -s (?:NET|ADDRESS) -i BRIDGE -j ACCEPT": "Established packets from "
    "a container, with its own source only.",
    r"-A (?:CHAIN|BRIDGES) -[io] PATTERN -j BRIDGES": "With many "
    "networks: all bridges whose names have this prefix.",
    r"-A (?:IPV6NAT-INPUT|PORTS) (?:-d ADDRESS )?-p PROTOCOL --dport PORT -j IPV6NAT-PROXY": "A "
    "published UDP or SCTP port on which the proxy listens: the proxy replaces the source of each "
    "datagram by the gateway.",
    r"-A IPV6NAT-PROXY -i lo -j RETURN": "The host's own programs.",
    r"-A IPV6NAT-PROXY -i BRIDGE -j DROP": "A closed network: its new packets get DNAT, but a flow "
    "may be older than the rule of the port.",
    r"-A IPV6NAT-PROXY ! -s fe80::/10 -m addrtype --src-type LOCAL -j DROP": "Other packets of the "
    "host to itself are forged, also those of an established entry: two frames on a bridge can "
    "make one.",
    r"-A IPV6NAT-PROXY -s fe80::/10 -m addrtype --src-type LOCAL --limit-iface-in -j DROP": "The "
    "same for link-local addresses. A router can have the one that the host has on another link.",
    r"-A IPV6NAT-PROXY -m conntrack --ctstate INVALID -j DROP": "conntrack calls a datagram with "
    "the length 0 in its UDP header invalid, so no rule translates it, but the proxy would receive "
    "it.",
    r"-A IPV6NAT-PROXY -m conntrack --ctdir REPLY -j DROP": "An attacker who sends a packet "
    "from the host's address to a client creates an entry. The client's next packet would be a "
    "reply of this entry, and would not be translated.",
    r"-A IPV6NAT-INPUT ! -i lo -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN "
    r"-m conntrack --ctdir REPLY -j DROP": "The same for TCP and the proxy of any port.",
    r"-A IPV6NAT-PROXY -m addrtype ! --dst-type LOCAL -j DROP": "Packets to a multicast group or "
    "an anycast address are not translated, but a proxy that listens on all addresses receives "
    "them.",
    r"-A IPV6NAT-INPUT ! -i lo -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN "
    r"-m conntrack --ctstate INVALID -j DROP": "The same where the attacker's packet was no SYN: "
    "conntrack then calls the client's SYN invalid.",
    r"-A IPV6NAT-INPUT -m conntrack --ctstate NEW,INVALID,UNTRACKED -j IPV6NAT-HOST": "A forged "
    "first packet to the host creates an entry too. A datagram of length 0 is invalid to "
    "conntrack, but a socket receives it, and its answer creates the entry. Neighbour discovery is "
    "not tracked; the error about an unknown option in it would have data of the packet.",
    r"-A IPV6NAT-FORWARD -p ah -m addrtype --dst-type LOCAL "
    r"-m conntrack --ctstate NEW,INVALID,UNTRACKED -j IPV6NAT-HOST": "A packet to the host passes "
    "here in a frame for another port of any bridge. Its entry would be the same as in INPUT.",
    r"-A IPV6NAT-HOST -i lo -j RETURN": "Packets from the host to itself.",
    r"-A IPV6NAT-HOST ! -s fe80::/10 -m addrtype --src-type LOCAL -m addrtype --dst-type LOCAL "
    "-j DROP": "Such packets come in by no other interface. The host's own multicast packets come "
    "back, and pass.",
    r"-A IPV6NAT-HOST -s fe80::/10 -m addrtype --src-type LOCAL --limit-iface-in "
    "-m addrtype --dst-type LOCAL -j DROP": "The same for link-local addresses. Docker up to 26 "
    "gives fe80::1 to each bridge, and many routers have it: their neighbour discovery passes.",
    r"-A IPV6NAT-HOST -s fe80::/10 -j RETURN": "A container may ask the host from its link-local "
    "address.",
    r"-A IPV6NAT-HOST -s ::/128 -p ipv6-icmp -j RETURN": "A container without an address yet asks "
    "whether another host has it.",
    r"-A (?:IPV6NAT-HOST|BRIDGES) ! -s NET -i BRIDGE -j DROP": "Otherwise a container asks the "
    "host with a source of its own network, also on an internal network: the host would send its "
    "answer to any other source out of the network.",
    r"-A (?:IPV6NAT-HOST|BRIDGES) -i BRIDGE -j IPV6NAT-OWN-BRIDGE": "The same for a network with "
    "several prefixes.",
    r"-A IPV6NAT-HOST -p ah TRACKED PORT -j DROP": "conntrack reads the ports behind an "
    "authentication header, and nf_tables rules do not. So no rule would translate such a first "
    "packet, and the proxy or nobody would receive all later packets.",
    rf"-A OUTPUT {JUMP} IPV6NAT-OUTPUT": "Only if the engine has an ipvlan network: in the modes "
    "l3 and l3s, the kernel sends the packets of its containers as those of the host.",
    r"-A IPV6NAT-OUTPUT -m conntrack --ctstate NEW,INVALID,UNTRACKED "
    r"-m addrtype ! --src-type LOCAL -j IPV6NAT-OUTPUT-SRC": "What the host sends has "
    "an address of the host, or rejects a packet of a flow.",
    r"-A IPV6NAT-OUTPUT-SRC -o BRIDGE -j DROP": "The host sends nothing else to a container.",
    r"-A IPV6NAT-OUTPUT-SRC -s NET -j DROP": "With a container's source it is forged.",
    r"-A IPV6NAT-INPUT (?:-d ::1/128|-s fe80::/10) -j IPV6NAT-REJ": "With many ports: other "
    "packets to the host, above all those of open connections, skip the rules for ports.",
    r"-A (?:IPV6NAT-DNAT|IPV6NAT-REJ) -p TRANSPORT -j PORTS": "With many ports: the ports of one "
    "protocol.",
    r"-A PORTS -p PROTOCOL --dport PORT -j PORTS": "A range of 4096 consecutive ports, then of "
    "512, then of 32.",
    r"-A (?:IPV6NAT-INPUT|PORTS) -d ::1/128 -p PROTOCOL --dport PORT -j REJECT": "Packets to [::1] "
    "cannot be forwarded. Without the proxy the client gets an error at once instead of a "
    "time-out.",
    r"-A (?:IPV6NAT-INPUT|PORTS) -s fe80::/10 (?:-d ADDRESS )?-p PROTOCOL --dport PORT "
    "-j REJECT": "The same for link-local clients: the kernel does not route their packets.",
    rf"-A PREROUTING -m addrtype --dst-type LOCAL {JUMP} IPV6NAT-PRE": "Any address of the host, "
    "including addresses that are added later.",
    rf"-A OUTPUT ! -s fe80::/10 ! -d ::1/128 -m addrtype --dst-type LOCAL {JUMP} IPV6NAT-DNAT": ""
    "The host's own programs, but never [::1], as the kernel would drop the replies, and never a "
    "link-local address, as it would not route the packet.",
    rf"-A POSTROUTING {JUMP} IPV6NAT-POST": "The source address of outgoing packets.",
    r"-A IPV6NAT-PRE -s fe80::/10 -i BRIDGE -j IPV6NAT-DNAT": "A packet cannot leave a closed "
    "network by a published port: with DNAT it is dropped, without DNAT the proxy would serve it. "
    "This rule is for link-local clients of a closed network.",
    r"-A IPV6NAT-PRE -s fe80::/10 -j RETURN": "The kernel does not route packets of link-local "
    "clients, so DNAT would only lose them.",
    r"-A IPV6NAT-PRE -m addrtype --src-type LOCAL -j RETURN": "Packets with a source of "
    "the host are dropped in FORWARD. They skip DNAT too, because a rule in DOCKER-USER may accept "
    "them.",
    r"-A IPV6NAT-PRE -j IPV6NAT-DNAT": "All other packets.",
    r"-A (?:IPV6NAT-DNAT|PORTS) (?:-d ADDRESS )?-i BRIDGE -p PROTOCOL --dport PORT "
    "-j REDIRECT": "The proxy would answer a container's datagram from an address to which the "
    "container did not send. After REDIRECT, conntrack restores the address in the reply.",
    r"-A (?:IPV6NAT-DNAT|PORTS) (?:-d ADDRESS )?(?:! -i BRIDGE )?-p PROTOCOL --dport PORT -j DNAT "
    "--to-destination TO": "A published port, or a range with equal host and container ports. With "
    "the proxy on, packets from the same bridge are left to the proxy. Rules for one address of "
    "the host come before rules for all addresses.",
    r"-A (?:IPV6NAT-POST|SOURCES) -s NET ! -o BRIDGE -m addrtype ! --src-type LOCAL -j SOURCE": ""
    "Outgoing packets get an address of the host. Packets from the host's own address on the "
    "bridge keep it.",
    r"-A IPV6NAT-POST -s NET -j RETURN": "A LAN of the host inside the network's subnet keeps its "
    "addresses.",
    r"-A (?:IPV6NAT-POST|SOURCES) -s NET -o BRIDGE -m conntrack --ctstate DNAT -j SOURCE": ""
    "Without the proxy: a container that reaches another one on its bridge by a published port "
    "must get the replies by way of the host. For a LAN inside the subnet this is always so, "
    "because the container takes the LAN's addresses for addresses on its own link.",
}
"""Each shape of a rule, in the order of the tables, and the reason for it."""

WORDS = {
    "BRIDGE": r"br-[a-z]+",
    "FIRST-BITS": r"[0-9a-f:]+/\d+",
    "SOURCES": r"IPV6NAT-[0-9a-f]+",
    "BRIDGES": r"IPV6NAT-[A-Z]?(?:IN|OUT)-br-[a-z]*",
    "PATTERN": r"br-[a-z]*\+",
    "CHAIN": r"IPV6NAT-(?:FORWARD|CT|HOST|SRC-FRAMES|SRC-HOST|SRC-OUT|SRC-TO-HOST)",
    "PORTS": r"IPV6NAT-(?:REJ-)?(?:TCP|UDP)(?:-\d+-\d+)?",
    "TRANSPORT": r"(?:tcp|udp)",
    "INTERFACE": r"ext0",
    "ADDRESS": r"[0-9a-f:]+/128",
    "NET": r"[0-9a-f:]+/(?:10|48|64|80)",
    "TRACKED": r"-m conntrack --ctproto (?:tcp|udp|sctp) -m conntrack --ctorigdstport",
    "MARK": r"0x\w+/0x\w+",
    "PROTOCOL --dport": r"(tcp|udp|sctp) -m (?:tcp|udp|sctp) --dport",
    "PORT": r"\d+(?::\d+)?",
    "REJECT": r"REJECT --reject-with (?:tcp-reset|icmp6-port-unreachable)",
    "TO": r"\S+",
    "SOURCE": r"(?:MASQUERADE|SNAT --to-source \S+)",
}


LONG = 20
"""Up to so many rules of one chain are all shown."""


def reasons(rule: str) -> list[str]:
    """The shapes that match a rule: exactly one, if the table above is right."""
    return [shape for shape in SHAPES if _pattern(shape).fullmatch(rule)]


ORDER = """\
## The order of the rules

Our rules stand beside rules of other programs. ipv6natd never moves a rule of another program. It
moves its own jumps only if a rule stands before them in FORWARD that no packet passes, or that the
Docker engine wrote. It does so at most five times a minute: then the jumps stay behind that rule,
and the state is `degraded`.

DOCKER-USER is the place for rules that apply to containers first. Its jump is directly before ours,
or where the engine has put it. A native nft rule in these chains counts as a rule that accepts some
packets, unless nft shows that it only drops. `ipv6natctl check` names a rule with the remark
"named".
"""
PLACES = (
    ("chain, and a rule of another program", "our place", "before ours", "behind ours"),
    ("---",) * 4,
    ("raw PREROUTING", "first, when written", "skips the check of sources, if it accepts", "works"),
    (
        "filter FORWARD, a ban list: drops some packets and accepts none",
        "behind it",
        "works, also for containers",
        "does not see packets of containers; named; with the command that adds it to "
        "DOCKER-USER, if it drops only by source",
    ),
    (
        "filter FORWARD, accepts some packets",
        "before it, when written",
        "works, also for ports that are not published; named",
        "works for packets that do not concern containers",
    ),
    (
        "filter FORWARD, no packet passes it",
        "before it, always",
        "does not stay there",
        "works for packets that do not concern containers",
    ),
    (
        "filter FORWARD, written by the engine",
        "before it, always",
        "does not stay there",
        "works for networks of the engine",
    ),
    ("filter INPUT", "first, when written", "skips our checks, if it accepts", "works"),
    (
        "nat PREROUTING and OUTPUT",
        "last, when written",
        "works: its DNAT of a port wins",
        "works for other ports",
    ),
    (
        "nat POSTROUTING",
        "last, when written",
        "works; named if it hides clients or overrides `host_ipv6`",
        "works for other packets",
    ),
)


def rules_md() -> str:
    """The whole page."""
    return "\n".join(_lines())


@cache
def _pattern(shape: str) -> re.Pattern[str]:
    for word, pattern in WORDS.items():
        shape = re.sub(rf"\b{word}\b", lambda _, new=pattern: new, shape)  # type: ignore[misc]
    return re.compile(shape)


def _shown(shape: str) -> str:
    """The shape in the notation of the page: [optional] and (one|another)."""
    shape = re.sub(r"\(\?:([^)|]*?) \)\?", r"[\1] ", shape)
    return re.sub(r"\(\?:([^)]*)\)", r"(\1)", shape).replace("-[io]", "(-i|-o)")


def _lines() -> Iterator[str]:
    yield INTRODUCTION
    yield ORDER
    yield from (f"| {' | '.join(row)} |" for row in PLACES)
    yield ""
    yield "## The reason for each rule\n"
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
    """The rules, without the middle of long chains."""
    for _, group in groupby(rules, key=lambda rule: rule.split()[:2]):
        chain = list(group)
        if len(chain) <= LONG:
            yield from chain
        else:
            yield from chain[:3]
            yield f"# {len(chain) - 4} more rules like these"
            yield chain[-1]
