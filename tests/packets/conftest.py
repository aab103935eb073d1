"""The shared labs; tests are ordered so that each is built once and one stands at a time."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import lab
from tests.lab import tree
from tests.lab.needs import lack
from tests.lab.report import OWN, Outcome, Ran, Report, said, scenarios
from tests.lab.sandbox import Variant

TOOLS = ("dockerd", "docker", "ip", "nsenter", "unshare", "setpriv", "busybox", "dbus-daemon")
NETFILTER = ("iptables", "ip6tables-nft", "ip6tables-legacy", "conntrack", "nft")


REPORT = pytest.StashKey[Report]()
OUTCOMES = pytest.StashKey[list[Outcome]]()


class Wanted(NamedTuple):
    """A lab to run all tests in: whose engine, and how."""

    suite: tree.Suite | None
    variant: Variant
    proxy: bool

    @property
    def id(self) -> str:
        """By suite and not by version, which is known only once the engine is there."""
        own = [self.suite] if self.suite else []
        return "-".join([*own, self.variant, "proxy" if self.proxy else "noproxy"])


# The variant changes what the rules are written with, which is ours and does not ask for the
# engine's age; so legacy is tried with one engine.
CI = [
    Wanted(None, "nft", True),
    Wanted(None, "nft", False),
    Wanted(None, "legacy", True),
    Wanted(None, "legacy", False),
    Wanted("trixie", "nft", True),
    Wanted("trixie", "nft", False),
]
ALL = [*CI, Wanted("sid", "nft", True), Wanted("sid", "nft", False)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    wanted = ALL if metafunc.config.getoption("--engines") == "all" else CI
    if metafunc.definition.get_closest_marker("each_variant"):
        wanted = [each for each in wanted if each.suite is None and not each.proxy]
    if "regime" in metafunc.fixturenames:
        ids = [each.id for each in wanted]
        metafunc.parametrize("regime", wanted, ids=ids, indirect=True, scope="session")
    elif "suite" in metafunc.fixturenames:
        suites = list(dict.fromkeys(each.suite for each in wanted))
        if metafunc.definition.get_closest_marker("newest"):
            suites = suites[-1:]
        ids = [each or "host" for each in suites]
        metafunc.parametrize("suite", suites, ids=ids, indirect=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What only the newest engine can do waits for a run that has it."""
    if config.getoption("--engines") != "all":
        late = [each for each in items if each.get_closest_marker("newest")]
        config.hook.pytest_deselected(items=late)
        items[:] = [each for each in items if each not in late]


@pytest.fixture(scope="session")
def tools() -> None:
    lab.need(*TOOLS, *NETFILTER)


@pytest.fixture
def suite(request: pytest.FixtureRequest, tools: None) -> tree.Suite | None:  # noqa: ARG001
    """Each suite whose engine is tried, None for the machine's own."""
    return there(request.param)


@pytest.fixture(scope="session")
def regime(request: pytest.FixtureRequest, tools: None) -> Iterator[lab.Regime]:  # noqa: ARG001
    """A furnished lab with the daemon running: see tests/lab/regime.py for who lives in it."""
    wanted: Wanted = request.param
    with lab.regime(wanted.variant, proxy=wanted.proxy, suite=there(wanted.suite)) as furnished:
        yield furnished


@pytest.fixture(autouse=True)
def calm(request: pytest.FixtureRequest) -> None:
    """What the test before took down is out of the rules before the next one looks at them."""
    if "regime" in request.fixturenames:
        furnished: lab.Regime = request.getfixturevalue("regime")
        words = ("org.ipv6natd1", "/org/ipv6natd1", "org.ipv6natd1.Manager")
        counts = ("MappingCount", "NetworkCount")
        # x1's three ports; X, Y, I and the default bridge.
        ask = partial(furnished.bus.busctl, "get-property", *words, *counts, check=False)
        lab.until(ask, "u 3\nu 4", timeout=10)


def there(suite: tree.Suite | None) -> tree.Suite | None:
    if suite is not None and not tree.ready(suite):
        lack(f"an engine of Debian {suite}; {tree.hint(suite)}")
    return suite


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "newest: only with the newest engine, of make test-all")
    config.addinivalue_line("markers", "each_variant: once with each variant, without the proxy")
    config.stash[REPORT] = Report(Path(config.rootpath))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember how a test ended; it has passed only if its setup and teardown have."""
    phase = yield
    outcomes = item.stash.setdefault(OUTCOMES, [])
    outcomes.append(phase.outcome)
    if phase.when == "teardown":
        bad: list[Outcome] = [each for each in outcomes if each != "passed"]
        item.config.stash[REPORT].ran.append(ran(item, (bad or outcomes)[-1]))
    return phase


def ran(item: pytest.Item, outcome: Outcome) -> Ran:
    assert isinstance(item, pytest.Function)
    params: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    wanted: Wanted | None = params.get("regime")
    return Ran(
        name=item.nodeid,
        scenarios=scenarios(item.originalname, item.function.__doc__),
        engine=version(wanted.suite if wanted else params.get("suite")),
        where=wanted.id if wanted else OWN,
        outcome=outcome,
    )


@cache
def version(suite: tree.Suite | None) -> str:
    """Of an engine, by what is installed: such as "20.10.24"."""
    text = tree.versions(suite).get("docker.io", "") if suite else said("dockerd", "--version")
    found = re.search(r"[0-9]+(\.[0-9]+)+", text)
    return found[0] if found else f"of {suite or 'this machine'}"


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    file = session.config.getoption("--report")
    if file and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(session.config.stash[REPORT].text())
