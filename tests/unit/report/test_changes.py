"""What the journal is told: fields, ids that the catalog explains, and no flood."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ipv6natd.model import Skipped
from ipv6natd.report.changes import MAX_TOLD, tell
from ipv6natd.report.status import State
from ipv6natd.system.messages import MessageId, log_fields
from tests import ROOT
from tests.harness.needs import need
from tests.integration.bus.conftest import mapping, status

CATALOG = ROOT / "systemd" / "ipv6natd.catalog"


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, str]]]:
    return [(each.levelname, getattr(each, "fields", {})) for each in caplog.records]


def test_a_mapping_can_be_found_by_each_of_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    run = replace(mapping(name="web"), count=3)
    with caplog.at_level("INFO"):
        tell(status(), status(run))
        tell(status(run), status())
    fields = {
        "IPV6NATD_CONTAINER": "web",
        "IPV6NATD_CONTAINER_ID": "0" * 64,
        "IPV6NATD_NETWORK": "front",
        "IPV6NATD_PORT": "8000-8002",
        "IPV6NATD_PROTOCOL": "tcp",
        "IPV6NATD_HOST_ADDRESS": "::",
        "IPV6NATD_CONTAINER_ADDRESS": "fd00:a::2",
    }
    assert told(caplog) == [
        ("INFO", {"MESSAGE_ID": MessageId.PUBLISHED, **fields}),
        ("INFO", {"MESSAGE_ID": MessageId.WITHDRAWN, **fields}),
    ]


def test_what_is_skipped_has_its_reason_and_what_is_not_known_is_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = Skipped(container_name="db", network="front", port="80/tcp", reason="taken by web")
    whole = Skipped(container_name="", network="back", port="", reason="public")
    with caplog.at_level("INFO"):
        tell(status(skipped=()), status(skipped=(port, whole)))
    id_ = {"MESSAGE_ID": MessageId.SKIPPED.value}
    assert told(caplog) == [
        (
            "WARNING",
            {
                **id_,
                "IPV6NATD_CONTAINER": "db",
                "IPV6NATD_NETWORK": "front",
                "IPV6NATD_PORT": "80",
                "IPV6NATD_PROTOCOL": "tcp",
                "IPV6NATD_REASON": "taken by web",
            },
        ),
        ("WARNING", {**id_, "IPV6NATD_NETWORK": "back", "IPV6NATD_REASON": "public"}),
    ]


def test_a_start_with_many_mappings_is_no_flood(caplog: pytest.LogCaptureFixture) -> None:
    many = status(*(mapping(number) for number in range(MAX_TOLD + 7)))
    with caplog.at_level("DEBUG"):
        tell(status(), many)
    levels = Counter(each.levelname for each in caplog.records if "published" in each.getMessage())
    assert levels == {"INFO": MAX_TOLD + 1, "DEBUG": 7}
    caplog.clear()
    with caplog.at_level("INFO"):
        tell(status(), many)
    assert len(caplog.records) == MAX_TOLD + 1
    assert "published 7 more: ipv6natctl mappings" in caplog.text


def test_a_sync_that_changed_nothing_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    now = status(mapping())
    with caplog.at_level("INFO"):
        tell(now, replace(now, last_sync=now.last_sync + 1))
        assert not caplog.records
        tell(now, replace(now, state=State.DEGRADED, state_reason="x"))
    fields = {"MESSAGE_ID": MessageId.STATE_CHANGED.value, "IPV6NATD_STATE": "degraded"}
    assert told(caplog) == [("INFO", fields)]


def entries() -> dict[str, str]:
    """Id -> text, as the file has them."""
    parts = re.split(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_the_catalog_explains_each_message_and_no_other() -> None:
    assert list(entries()) == [each.value for each in MessageId]


def message_ids_in_sources() -> set[str]:
    """The members of MessageId that the sources use."""
    found: set[str] = set()
    for path in ROOT.glob("ipv6natd/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="log_fields"), args=[first]):
                    found |= {first.attr} if isinstance(first, ast.Attribute) else ABOUT_MAPPINGS
    return found


ABOUT_MAPPINGS = {"PUBLISHED", "WITHDRAWN"}


def test_each_message_is_said() -> None:
    assert message_ids_in_sources() == set(MessageId.__members__)


def test_the_catalog_names_no_field_that_systemd_would_leave_as_it_is() -> None:
    assert not re.search("@[A-Z_]*[0-9]", CATALOG.read_text())


def test_systemd_reads_the_catalog(tmp_path: Path) -> None:
    need("journalctl")
    folder = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    folder.mkdir(parents=True)
    (folder / CATALOG.name).write_bytes(CATALOG.read_bytes())
    journalctl = ("journalctl", f"--root={tmp_path}")
    subprocess.run((*journalctl, "--update-catalog"), check=True, capture_output=True)
    shown = subprocess.run(
        (*journalctl, "--list-catalog"), check=True, capture_output=True, text=True
    ).stdout
    assert len(shown.splitlines()) == len(MessageId)
    for each in MessageId:
        assert f"{each.value} ipv6natd: " in shown


def test_empty_fields_are_left_out() -> None:
    assert log_fields(MessageId.STOPPED, container="") == {
        "fields": {"MESSAGE_ID": MessageId.STOPPED.value}
    }
