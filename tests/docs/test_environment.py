"""SECURITY.md agrees with the unit and the tests, and has one mail address."""

from __future__ import annotations

import re

from ipv6natd.system import process as tools
from tests import ROOT

PAGE = (ROOT / "SECURITY.md").read_text()
UNIT = (ROOT / "systemd" / "ipv6natd.service").read_text()
RUNS = {
    *("Type", "NotifyAccess", "BusName", "EnvironmentFile", "Environment", "ExecStart"),
    *("ExecReload", "Restart", "RestartSec", "RestartPreventExitStatus", "WatchdogSec"),
    *("TimeoutStartSec", "TimeoutStopSec", "StateDirectory"),
    *("RuntimeDirectory", "RuntimeDirectoryPreserve"),
}
"""Directives of [Service] that do not restrict the process."""


def test_each_line_of_the_sandbox_is_explained_and_no_other() -> None:
    service = UNIT.partition("[Service]\n")[2].partition("\n[")[0]
    lines = [each for each in service.splitlines() if each and not each.startswith("#")]
    sandbox = [each for each in lines if each.partition("=")[0] not in RUNS]
    explained = re.findall(r"^\| `(\w+=.*?)` \| \S.* \|$", PAGE, re.MULTILINE)
    assert sorted(explained) == sorted(sandbox)


def test_there_is_one_address_and_it_is_that_of_the_packages() -> None:
    addresses = set(re.findall(r"[\w.+-]+@[\w-]+\.[\w.]*\w", PAGE))
    control = (ROOT / "packaging" / "deb" / "debian" / "control").read_text()
    assert len(addresses) == 1
    assert f"<{addresses.pop()}>" in control


def test_the_folders_of_tools_are_those_that_are_trusted() -> None:
    named = re.findall(r"tools in ([^.]*)\.", PAGE)[0]
    assert set(re.split(r", | and ", " ".join(named.split()))) == set(tools.TOOL_DIRECTORIES)


def test_the_examples_that_it_names_are_there() -> None:
    for name in re.findall(r"examples/([\w.-]+\w)", PAGE):
        assert (ROOT / "examples" / name).exists()
    assert (ROOT / "examples" / "50-ipv6natd.rules").exists()


def test_every_claim_names_tests_that_there_are() -> None:
    """Each part of a claim's second column: the names of tests, in the file before them."""
    tables = PAGE.split("| claim | test |")[1:]
    rows = [
        row
        for table in tables
        for row in re.findall(r"^\| .+\. \| (.+) \|$", table.partition("\n\n")[0], re.MULTILINE)
    ]
    assert len(rows) >= 18
    missing = []
    for row in rows:
        file = "tests/system/packets/test_forged.py"
        for path, name in re.findall(r"(tests/[\w/]+\.py)|`(\w+)`", row):
            file = path or file
            if name and f"def test_{name}" not in (ROOT / file).read_text():
                missing.append(f"{file} {name}")
    assert missing == []
