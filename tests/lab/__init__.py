"""A small network with a real Docker engine in it, apart from the machine's own.

Network namespaces hold a host, a client and a rogue; the engine, the private bus and ipv6natd run
in the host's. Everything here is a context manager, and what it made is gone when it is left. No
test of behaviour lives here, and no knowledge of ipv6natd's rules.
"""

from tests.lab import tree
from tests.lab.bus import Bus
from tests.lab.daemon import Daemon
from tests.lab.engine import Container, Engine, Network
from tests.lab.leftovers import leftovers
from tests.lab.namespace import Namespace
from tests.lab.needs import need
from tests.lab.probe import Answer, Failure, connect, ping, tcp, udp, until, watch
from tests.lab.regime import Regime, Wanted, regime
from tests.lab.sandbox import Sandbox
from tests.lab.serve import Server, serve

__all__ = [
    "Answer",
    "Bus",
    "Container",
    "Daemon",
    "Engine",
    "Failure",
    "Namespace",
    "Network",
    "Regime",
    "Sandbox",
    "Server",
    "Wanted",
    "connect",
    "leftovers",
    "need",
    "ping",
    "regime",
    "serve",
    "tcp",
    "tree",
    "udp",
    "until",
    "watch",
]
