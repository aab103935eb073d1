"""A small network with a real Docker engine, separate from the machine's own network and engine.

A host, a client and a rogue are network namespaces. The engine, the private bus and ipv6natd run
in the host's namespace. Everything here is a context manager that removes what it created. This
package contains no test of behaviour and no knowledge of ipv6natd's rules.
"""

from tests.harness import exchange, tree
from tests.harness.bus import Bus
from tests.harness.daemon import Daemon
from tests.harness.engine import Container, Engine, Network
from tests.harness.leftovers import leftovers
from tests.harness.namespace import Namespace
from tests.harness.needs import need
from tests.harness.probe import Answer, Failure, connect, ping, tcp, udp, until, watch
from tests.harness.regime import Regime, Wanted, regime
from tests.harness.sandbox import Sandbox
from tests.harness.serve import Server, serve

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
    "exchange",
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
