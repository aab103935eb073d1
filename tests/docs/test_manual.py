"""The manual pages: valid, and consistent with the help, the flags and the settings."""

from __future__ import annotations

import re
import subprocess

import pytest

from ipv6natd import cli
from ipv6natd.config import KEYS, example, file_layer, settings
from ipv6natd.ctl.commands import COMMANDS
from ipv6natd.ctl.usage import EXAMPLES, FILTERS, FLAGS
from tests import ROOT
from tests.harness.needs import PATH, lack

MAN = ROOT / "man"
PAGES = sorted(path.name for path in MAN.iterdir())


def source(page: str) -> str:
    return (MAN / page).read_text()


def mandoc(*words: str) -> str:
    """The output of mandoc. Without a manual database mandoc does not know foreign pages."""
    try:
        done = subprocess.run(
            ("mandoc", *words), capture_output=True, text=True, check=False, env={"PATH": PATH}
        )
    except FileNotFoundError:
        lack("mandoc")
    return done.stdout


def shown(page: str) -> str:
    """The formatted page in one line."""
    text = mandoc("-Tascii", str(MAN / page))
    return " ".join(re.sub(".\b", "", text).split())


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_clean(page: str) -> None:
    lines = mandoc("-Tlint", "-Wstyle", str(MAN / page)).splitlines()
    assert [line for line in lines if "referenced manual not found" not in line] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_says_what_it_is_and_leads_to_pages_that_there_are(page: str) -> None:
    name, _, section = page.rpartition(".")
    text = source(page)
    assert f".Dt {name.upper()} {section}\n" in text
    ours = re.findall(r"^\.Xr (\S*ipv6nat\S*) (\d)", text, re.MULTILINE)
    known = {*PAGES, "org.ipv6natd1.5"}
    assert {f"{other}.{number}" for other, number in ours} <= known


def items(page: str, macro: str) -> list[str]:
    """The first words of list items like `.It Cm status`."""
    return re.findall(rf"^\.It {macro} ([\w-]+)", source(page), re.MULTILINE)


def test_the_page_of_the_tool_has_every_command_in_the_order_of_the_help() -> None:
    assert items("ipv6natctl.1", "Cm") == list(COMMANDS)


def test_the_page_of_the_tool_has_every_option_and_no_other() -> None:
    options = re.findall(r"^\.It (Fl .*)", source("ipv6natctl.1"), re.MULTILINE)
    named = {each for line in options for each in re.findall(r"Fl (Fl [\w-]+|\w\b)", line)}
    long = {*FILTERS, *FLAGS, "json", "no-legend", "help", "version"}
    assert named == {f"Fl {each}" for each in long} | {"h", "j"}


def test_the_page_of_the_tool_has_every_exit_status_of_the_help() -> None:
    told = re.findall(r"(?:^|\s\s)(\d) [a-z]", EXAMPLES.partition("exit status:")[2])
    assert len(told) == 5
    assert re.findall(r"^\.It (\d)$", source("ipv6natctl.1"), re.MULTILINE) == told


def test_the_page_of_the_daemon_has_every_flag() -> None:
    flags = {
        option.lstrip("-")
        for action in cli._parser()._actions
        for option in action.option_strings
        if not option.startswith("--")
    }
    named = set(re.findall(r"Fl ([\w-]+)", source("ipv6natd.8")))
    assert flags <= named
    assert named <= flags


def test_the_page_of_the_settings_has_every_key_as_the_shipped_file_has_it() -> None:
    assert items("ipv6natd.toml.5", "Ic") == [key.name for key in KEYS]
    text = shown("ipv6natd.toml.5")
    for key in KEYS:
        default = re.search(rf"^#{key.name} = (.*)$", example(), re.MULTILINE)
        assert default is not None
        assert f"{key.name} {key.about} " in text
        after = text[text.index(f"{key.name} {key.about} ") :]
        legal = after.partition("Legal: ")[2]
        assert legal.startswith(f"{key.legal}. Default: {default[1]}.")
        if key.environment:
            assert key.environment in source("ipv6natd.toml.5")


def test_the_example_of_the_settings_loads() -> None:
    text = source("ipv6natd.toml.5").partition(".Sh EXAMPLES\n.Bd")[2].partition("\n")[2]
    layer = file_layer("example", text.partition(".Ed")[0])
    assert settings([layer]).ipv4_any_means_ipv6
