"""The shared labs. Tests are ordered so that each lab is built once, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests import harness
from tests.harness import Wanted, tree
from tests.harness.needs import lack
from tests.harness.report import scenarios

TOOLS = ("dockerd", "docker", "ip", "nsenter", "unshare", "setpriv", "busybox", "dbus-daemon")
NETFILTER = ("iptables", "ip6tables-nft", "ip6tables-legacy", "conntrack", "nft")


DEFAULT = Wanted(None, "nft", True)
"""The regime in which CI runs tests with the same result in all regimes."""
DIMENSIONS = ("variant", "proxy", "engine")
CI = [
    DEFAULT,
    Wanted(None, "nft", False),
    Wanted(None, "legacy", True),
    Wanted(None, "legacy", False),
    Wanted("trixie", "nft", True),
    Wanted("trixie", "nft", False),
]
"""The regimes of CI. The rules of a variant do not depend on the engine's version, so legacy runs
with one engine."""
ALL = [*CI, Wanted("sid", "nft", True), Wanted("sid", "nft", False)]
NATIVE = [
    pytest.param(each, marks=pytest.mark.native, id=each.id)
    for each in (Wanted("sid", "nft", True, native=True), Wanted("sid", "nft", False, native=True))
]
"""The regimes without ipv6natd, which run only the scenarios."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    every = metafunc.config.getoption("--engines") == "all"
    if "regime" in metafunc.fixturenames:
        metafunc.parametrize("regime", labs(metafunc, every), indirect=True, scope="session")
    elif "wanted" in metafunc.fixturenames and metafunc.definition.get_closest_marker("depends_on"):
        wanted = regimes(metafunc, every)
        ids = [each.id for each in wanted]
        metafunc.parametrize("wanted", wanted, ids=ids, scope="module")
    elif "suite" in metafunc.fixturenames:
        suites = list(dict.fromkeys(each.suite for each in (ALL if every else CI)))
        if metafunc.definition.get_closest_marker("newest"):
            suites = suites[-1:]
        ids = [each or "host" for each in suites]
        metafunc.parametrize("suite", suites, ids=ids, indirect=True)


def labs(metafunc: pytest.Metafunc, every: bool) -> list[Any]:
    """The regimes that a test runs in."""
    marked = metafunc.definition.get_closest_marker
    wanted = regimes(metafunc, every)
    if marked("newest"):
        wanted = ALL[-2:]
    if marked("each_variant"):
        wanted = [each for each in CI if each.suite is None and not each.proxy]
    beside = [] if marked("native") else [pytest.param(each, id=each.id) for each in wanted]
    asks = scenarios(metafunc.function.__name__, metafunc.function.__doc__)
    return beside + (NATIVE if asks and not marked("ours") else [])


def regimes(metafunc: pytest.Metafunc, every: bool) -> list[Wanted]:
    """All regimes, or those that can change the result of the test."""
    return ALL if every else [wanted for wanted in CI if differs(metafunc, wanted)]


def differs(metafunc: pytest.Metafunc, wanted: Wanted) -> bool:
    """True if CI runs the test in this regime.

    The test names the dimensions that can change its result. CI then has each value of each of
    them at least once; with `combined=True`, each combination of them. `make test-all` has all.
    """
    marker = metafunc.definition.get_closest_marker("depends_on")
    if marker is None or not set(marker.args) <= set(DIMENSIONS):
        name = metafunc.function.__name__
        pytest.fail(f"{name}: mark it depends_on(...), with what of {', '.join(DIMENSIONS)}")
    here = (wanted.variant, wanted.proxy, wanted.suite)
    default = (DEFAULT.variant, DEFAULT.proxy, DEFAULT.suite)
    other = {d for d, mine, usual in zip(DIMENSIONS, here, default, strict=True) if mine != usual}
    named = set(marker.args)
    if not other or marker.kwargs.get("combined"):
        return other <= named
    # No regime has both the other variant and the other engine; the proxy is off beside either.
    apart = {"proxy"}
    return (
        other <= named
        and other & apart == named & apart
        and bool(other - apart) == bool(named - apart)
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In a native regime a failed assertion is a measured result of the engine, and no fault."""
    for each in items:
        if each.get_closest_marker("native"):
            each.add_marker(pytest.mark.xfail(raises=AssertionError, reason="the engine alone"))


@pytest.fixture(scope="session")
def tools() -> None:
    harness.need(*TOOLS, *NETFILTER)


@pytest.fixture
def suite(request: pytest.FixtureRequest, tools: None) -> tree.Suite | None:  # noqa: ARG001
    """The suite of the tested engine, None for the machine's own."""
    return there(request.param)


@pytest.fixture(scope="session")
def regime(request: pytest.FixtureRequest, tools: None) -> Iterator[harness.Regime]:  # noqa: ARG001
    """A lab with containers and a running daemon: see tests/harness/regime.py."""
    wanted: Wanted = request.param
    there(wanted.suite)
    with harness.regime(wanted) as furnished:
        yield furnished


@pytest.fixture(autouse=True)
def calm(request: pytest.FixtureRequest) -> None:
    """Wait until the rules of the former test are removed."""
    if "regime" in request.fixturenames:
        furnished: harness.Regime = request.getfixturevalue("regime")
        if furnished.native:
            return  # the engine writes before it answers
        words = ("org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager")
        counts = ("MappingCount", "NetworkCount")
        # x1's three ports; X, Y, I and the default bridge.
        ask = partial(furnished.bus.busctl, "get-property", *words, *counts, check=False)
        harness.until(ask, "u 3\nu 4", timeout=10)


def there(suite: tree.Suite | None) -> tree.Suite | None:
    if suite is not None and not tree.ready(suite):
        lack(f"an engine of Debian {suite}; {tree.hint(suite)}")
    return suite
