"""The pages and the picture: no unknown command, option or key, and no broken link.

`UPDATE_DOCS=1 .venv/bin/pytest tests/docs/test_pages.py` draws the picture again.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ipv6natd.config import KEYS
from ipv6natd.ctl.commands import COMMANDS
from ipv6natd.ctl.usage import FILTERS, FLAGS
from tests import ROOT
from tests.docs.picture import PACKET_SVG, WAYS, Box, packet_svg
from tests.unit.policy.test_ruleset import GOLDEN

PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])


COMMANDS_OF_PAGES = [
    *PAGES,
    *(
        each
        for name in ("examples", "man", "packaging", "systemd")
        for each in (ROOT / name).rglob("*")
    ),
]


def test_no_command_goes_by_a_path_that_everybody_may_make() -> None:
    """A user could put a symbolic link or a list of files there, for a command of root."""
    fixed = re.compile(r"(?<![\w/])/(?:var/)?tmp/\w")
    found = {
        path.name: [line for line in path.read_text().splitlines() if fixed.search(line)]
        for path in COMMANDS_OF_PAGES
        if path.is_file()
    }
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_the_picture_is_up_to_date() -> None:
    text = packet_svg()
    if os.environ.get("UPDATE_DOCS"):
        PACKET_SVG.write_text(text)
    stands = PACKET_SVG.read_text() if PACKET_SVG.exists() else ""
    command = "UPDATE_DOCS=1 .venv/bin/pytest tests/docs/test_pages.py"
    assert stands == text, f"docs/packet.svg is stale; this draws it: {command}"
    ElementTree.fromstring(text)


@pytest.mark.parametrize("box", sorted({box for way in WAYS for box in way.boxes if box.rule}))
def test_the_picture_shows_rules_that_there_are(box: Box) -> None:
    table, chain = box.name.split()
    ours = {"PREROUTING": "DNAT", "POSTROUTING": "POST"}.get(chain, chain)
    rules = "".join(path.read_text() for path in GOLDEN.glob("*.txt")).splitlines()
    held = [rule for rule in rules if rule.startswith(f"-A IPV6NAT-{ours} ")]
    assert any(box.rule in rule for rule in held)
    assert table == ("nat" if chain.endswith("ROUTING") else "filter")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text()
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", text):
        if "://" in target:
            continue
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            anchors = [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings]
            assert anchor in anchors, anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_option_and_key_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    for command in re.findall(r"[$`] ?(?:sudo )?ipv6natctl ([a-z]+)\b", text):
        assert command in COMMANDS, command
    for option in re.findall(r"ipv6natctl [a-z]+ --([a-z-]+)", text):
        assert option in {*FILTERS, *FLAGS, "json", "no-legend", "help", "version"}, option
    for key in re.findall(r"`([a-z0-9]+_[a-z0-9_]+) = ", text):
        assert key in {each.name for each in KEYS}, key
