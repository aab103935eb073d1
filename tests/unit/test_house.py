"""The plan of the house, read from the imports: core below, shell above, no arrow unlisted."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.unit.every import every

PACKAGE = Path(__file__).parent.parent.parent / "ipv6natd"

ARROWS = """
address_watch ->
background    ->
bus           -> dbus_values dbus_wire
checks        -> host_checks status
claims        -> model networks remember
cli           -> config early daemon firewall flows flush logs notify tables tools
config        -> model
conntrack     -> ctnetlink flows model tools
contest       ->
counters      -> rules save_text
ctnetlink     -> flows
ctl           -> bus ctl.asking ctl.commands ctl.usage tables
ctl.asking    -> bus tables
ctl.checking  -> bus checks ctl.asking firewall firewall.restore firewalld host_checks host_facts
                 leftovers model status tables tools
ctl.commands  -> ctl.checking ctl.explaining ctl.lists ctl.measured ctl.prefix ctl.steering
                 ctl.usage ctl.watching
ctl.explaining -> ctl.asking port_outcomes tables
ctl.lists     -> ctl.asking status tables
ctl.measured  -> bus ctl.asking metrics
ctl.prefix    -> ctl.asking tools ula
ctl.steering  -> bus config ctl.asking firewall flush tables tools
ctl.watching  -> bus ctl.asking ctl.lists status tables
ctl.usage     -> ctl.asking model tables
daemon        -> address_watch background bus config conntrack dbus_api docker_watch explain
                 firewall firewall.choose firewall.drift firewall.engine firewall.late
                 firewall.restore firewalld flows forwarding host_checks host_facts journal kept
                 leftovers logs model notify reconcile snapshot status textfile
dbus_api      -> bus dbus_limits dbus_members dbus_objects dbus_signals polkit status
dbus_limits   -> bus
dbus_lists    -> bus dbus_values filters status
dbus_members  -> bus dbus_lists dbus_objects dbus_values leftovers log_control polkit status
dbus_objects  ->
dbus_signals  -> bus dbus_objects dbus_values model status
dbus_values   -> dbus_wire status
dbus_wire     ->
desired       -> claims model networks remember
docker_facts  -> model
docker_watch  -> background docker_facts endpoint engine_flags engine_unit json_rows journal
                 model
early         -> firewall firewall.restore flows kept plan rules ruleset
endpoint      ->
engine_flags  ->
engine_rules  -> model save_text
engine_unit   -> tools
explain       -> counters model networks port_outcomes rules status
files         ->
filters       -> model status
firewall      -> plan rules
firewall.choose  -> firewall firewall.legacy firewall.restore
firewall.drift   -> background firewall tools
firewall.engine  -> engine_rules firewall firewall.restore firewall.xtables leftovers model tools
firewall.fake    -> firewall plan rules save_text
firewall.late    -> firewall plan rules
firewall.legacy  -> firewall firewall.restore firewall.xtables plan rules
firewall.restore -> counters firewall plan rules save_text tools
firewall.steps   -> firewall plan rules
firewall.xtables -> files firewall firewall.restore plan rules
firewalld     -> bus
flows         -> model networks plan rules ruleset
flush         -> firewall firewall.choose firewall.restore forwarding kept kernel
forwarding    -> files firewall host_facts journal kept sysctls
host_checks   -> leftovers model nft_rules rules
host_facts    -> firewall host_checks host_rules model
host_rules    -> host_checks leftovers nft_rules rules tools
journal       -> host_checks model status
json_rows     ->
kept          -> files plan rule_text rules
kernel        -> contest desired firewall flows journal model plan rules ruleset
leftovers     -> model rules save_text
log_control   -> bus logs status
logs          -> tables
metrics       -> model status
model         -> remember
networks      -> model
nft_rules     ->
notify        -> tables
plan          -> rules
polkit        -> bus dbus_values
port_outcomes -> claims counters model networks rules status
reconcile     -> background contest explain firewall firewall.steps flows host_checks journal
                 kernel
                 model rules status
remember      ->
rule_text     -> model rules
rules         -> model
ruleset       -> model remember rules split
save_text     -> plan rules
split         -> model rules
snapshot      -> firewall.engine host_facts model networks
status        -> leftovers model
sysctls       -> model
tables        ->
textfile      -> background files metrics status
tools         -> background
ula           ->
"""
"""Who imports whom. A new arrow is a decision about the house: add it here and to the picture in
CONTRIBUTING.md, or do without."""

CORE = {
    "checks",
    "claims",
    "config",
    "contest",
    "counters",
    "desired",
    "docker_facts",
    "engine_rules",
    "explain",
    "filters",
    "flows",
    "host_checks",
    "json_rows",
    "leftovers",
    "metrics",
    "model",
    "networks",
    "nft_rules",
    "plan",
    "port_outcomes",
    "remember",
    "rule_text",
    "rules",
    "ruleset",
    "save_text",
    "split",
    "status",
    "sysctls",
    "tables",
    "ula",
}
IMPURE = {
    *("asyncio", "ctypes", "fcntl", "logging", "multiprocessing", "os", "pathlib", "random"),
    *("select", "signal", "socket", "subprocess", "tempfile", "threading", "time"),
}
"""What of the standard library would give the core a clock, a world or a past."""
ALLOWED = {("config", "pathlib"), ("rules", "socket")}
"""What config takes names files only, and rules takes inet_ntop alone: text of sixteen bytes."""


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    del found["__init__"]
    return found


def imported(path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, inside of functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names)
            case ast.ImportFrom(module=str(module), names=names, level=0):
                for each in names:
                    whole = f"{module}.{each.name}"
                    ours = whole.removeprefix("ipv6natd.") in modules()
                    yield whole if ours else module
            case ast.ImportFrom():
                pytest.fail(f"{path} imports relatively; name the package")


@cache
def arrows() -> dict[str, set[str]]:
    return {
        name: {
            each.removeprefix("ipv6natd.")
            for each in imported(path)
            if each.startswith("ipv6natd.")
        }
        for name, path in modules().items()
    }


@cache
def others() -> dict[str, set[str]]:
    """Packages from elsewhere by module."""
    return {
        name: {each.partition(".")[0] for each in imported(path)} - {"ipv6natd", "__future__"}
        for name, path in modules().items()
    }


def listed() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    name = ""
    for line in ARROWS.strip().splitlines():
        left, arrow, right = line.rpartition("->")
        name = left.strip() if arrow else name
        found.setdefault(name, set()).update(right.split())
    return found


def test_every_arrow_is_listed() -> None:
    drawn = {f"{name} -> {each}" for name, to in arrows().items() for each in to}
    allowed = {f"{name} -> {each}" for name, to in listed().items() for each in to}
    assert sorted(drawn - allowed) == []


def test_no_arrow_is_listed_that_is_gone() -> None:
    drawn = {f"{name} -> {each}" for name, to in arrows().items() for each in to}
    allowed = {f"{name} -> {each}" for name, to in listed().items() for each in to}
    assert sorted(allowed - drawn) == []
    assert sorted(listed()) == sorted(modules())


def test_the_core_imports_core_alone() -> None:
    assert {name: arrows()[name] - CORE for name in CORE if arrows()[name] - CORE} == {}


def test_the_core_imports_nothing_that_has_a_world_or_a_clock() -> None:
    standard = sys.stdlib_module_names
    bad = {
        (name, each)
        for name in CORE
        for each in others()[name]
        if each in IMPURE or each not in standard
    }
    assert bad - ALLOWED == set()


@pytest.mark.parametrize("top", ["daemon", "cli", "ctl"])
def test_nobody_leans_on_the_top(top: str) -> None:
    leaning = {name for name, to in arrows().items() if top in to}
    assert leaning == ({"cli"} if top == "daemon" else set())


def test_python_iptables_is_loaded_lazily() -> None:
    """It loads kernel modules when it is imported, and never may on a host of the nft variant."""
    for name, path in modules().items():
        if name == "firewall.legacy":
            continue
        top = ast.parse(path.read_text()).body
        named = {
            each.module for each in top if isinstance(each, ast.ImportFrom) and each.module
        } | {alias.name for each in top if isinstance(each, ast.Import) for alias in each.names}
        assert "ipv6natd.firewall.legacy" not in named


def test_the_fake_is_for_tests() -> None:
    assert not [name for name, to in arrows().items() if "firewall.fake" in to]


def test_nobody_stands_on_himself() -> None:
    """No cycles: every module can be taken away after all that it stands on."""
    left = {name: set(to) for name, to in arrows().items()}
    while left:
        free = {name for name, to in left.items() if not to & left.keys()}
        assert free, f"these import each other: {sorted(left)}"
        left = {name: to for name, to in left.items() if name not in free}


@every("name", sorted(modules()))
def test_every_room_says_what_lives_in_it(name: str) -> None:
    assert ast.get_docstring(ast.parse(modules()[name].read_text()))
