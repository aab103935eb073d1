"""Journal messages: their fields, their ids in the catalog, and their number."""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ipv6natd.host.findings import Finding, Severity, Topic
from ipv6natd.model import Skipped
from ipv6natd.report.changes import MAX_LINES_PER_KIND, log_changes, log_findings
from ipv6natd.report.status import State
from ipv6natd.system.messages import MessageId, log_fields
from tests import ROOT
from tests.harness.needs import need
from tests.integration.bus.conftest import mapping, status

CATALOG = ROOT / "systemd" / "ipv6natd.catalog"


def logged(caplog: pytest.LogCaptureFixture) -> list[tuple[str, dict[str, str]]]:
    return [(record.levelname, getattr(record, "fields", {})) for record in caplog.records]


def test_mapping_message_has_all_fields(caplog: pytest.LogCaptureFixture) -> None:
    run = replace(mapping(name="web"), count=3)
    with caplog.at_level("INFO"):
        log_changes(status(), status(run))
        log_changes(status(run), status())
    fields = {
        "IPV6NATD_CONTAINER": "web",
        "IPV6NATD_CONTAINER_ID": "0" * 64,
        "IPV6NATD_NETWORK": "front",
        "IPV6NATD_PORT": "8000-8002",
        "IPV6NATD_PROTOCOL": "tcp",
        "IPV6NATD_HOST_ADDRESS": "::",
        "IPV6NATD_CONTAINER_ADDRESS": "fd00:a::2",
    }
    assert logged(caplog) == [
        ("INFO", {"MESSAGE_ID": MessageId.PUBLISHED, **fields}),
        ("INFO", {"MESSAGE_ID": MessageId.WITHDRAWN, **fields}),
    ]


def test_skipped_message_has_its_reason_and_no_empty_fields(
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = Skipped(container_name="db", network="front", port="80/tcp", reason="taken by web")
    whole = Skipped(container_name="", network="back", port="", reason="public")
    with caplog.at_level("INFO"):
        log_changes(status(skipped=()), status(skipped=(port, whole)))
    id_ = {"MESSAGE_ID": MessageId.SKIPPED.value}
    assert logged(caplog) == [
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


def test_log_changes_limits_the_lines_of_one_kind(caplog: pytest.LogCaptureFixture) -> None:
    many = status(*(mapping(number) for number in range(MAX_LINES_PER_KIND + 7)))
    with caplog.at_level("DEBUG"):
        log_changes(status(), many)
    levels = Counter(
        record.levelname for record in caplog.records if "published" in record.getMessage()
    )
    assert levels == {"INFO": MAX_LINES_PER_KIND + 1, "DEBUG": 7}
    caplog.clear()
    with caplog.at_level("INFO"):
        log_changes(status(), many)
    assert len(caplog.records) == MAX_LINES_PER_KIND + 1
    assert "published 7 more: ipv6natctl mappings" in caplog.text


def test_log_changes_without_a_change_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    now = status(mapping())
    with caplog.at_level("INFO"):
        log_changes(now, replace(now, last_sync=now.last_sync + 1))
        assert not caplog.records
        log_changes(now, replace(now, state=State.DEGRADED, state_reason="x"))
    fields = {"MESSAGE_ID": MessageId.STATE_CHANGED.value, "IPV6NATD_STATE": "degraded"}
    assert logged(caplog) == [("INFO", fields)]


def entries() -> dict[str, str]:
    """Id -> text, in the order of the file."""
    parts = re.split(r"^-- ([0-9a-f]{32})$", CATALOG.read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_catalog_has_the_message_ids_and_no_others() -> None:
    assert list(entries()) == [message_id.value for message_id in MessageId]


def message_ids_in_sources() -> set[str]:
    """The members of MessageId that the sources use."""
    found: set[str] = set()
    for path in ROOT.glob("ipv6natd/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="log_fields"), args=[first]):
                    found |= {first.attr} if isinstance(first, ast.Attribute) else ABOUT_MAPPINGS
    return found


OFF = Finding(topic=Topic.FORWARDING, problem="it is off", command="sysctl -w a=1")
ZONE = Finding(topic=Topic.FIREWALLD, problem="no zone", network="front", bridge="br-front")
FILTER = Finding(topic=Topic.FIREWALL, severity=Severity.NOTE, problem="a filter")


def test_finding_message_has_its_fields(caplog: pytest.LogCaptureFixture) -> None:
    """An error of one network is logged as the warning of this network."""
    with caplog.at_level("INFO"):
        log_findings((), (OFF, ZONE, FILTER))
        log_findings((OFF, ZONE, FILTER), (OFF, ZONE, FILTER))
        log_findings((OFF, ZONE, FILTER), ())
    off = {
        "IPV6NATD_ABOUT": "forwarding",
        "IPV6NATD_SEVERITY": "error",
        "IPV6NATD_COMMAND": "sysctl -w a=1",
    }
    zone = {
        "IPV6NATD_ABOUT": "firewalld",
        "IPV6NATD_SEVERITY": "error",
        "IPV6NATD_NETWORK": "front",
    }
    note = {"IPV6NATD_ABOUT": "firewall", "IPV6NATD_SEVERITY": "note"}
    assert logged(caplog) == [
        ("WARNING", {"MESSAGE_ID": MessageId.HOST_FINDING, **off}),
        ("INFO", {"MESSAGE_ID": MessageId.HOST_NOTE, **note}),
        ("INFO", {"MESSAGE_ID": MessageId.HOST_FINDING_RESOLVED, **off}),
        ("INFO", {"MESSAGE_ID": MessageId.HOST_FINDING_RESOLVED, **zone}),
    ]


ABOUT_MAPPINGS = {"PUBLISHED", "WITHDRAWN"}


def test_sources_use_every_message_id() -> None:
    assert message_ids_in_sources() == set(MessageId.__members__)


def test_catalog_has_no_field_that_systemd_cannot_substitute() -> None:
    assert not re.search("@[A-Z_]*[0-9]", CATALOG.read_text())


def test_systemd_reads_the_catalog(tmp_path: Path) -> None:
    need("journalctl")
    folder = tmp_path / "usr" / "lib" / "systemd" / "catalog"
    folder.mkdir(parents=True)
    (folder / CATALOG.name).write_bytes(CATALOG.read_bytes())
    journalctl = ("journalctl", f"--root={tmp_path}")
    subprocess.run((*journalctl, "--update-catalog"), check=True, capture_output=True)
    listing = subprocess.run(
        (*journalctl, "--list-catalog"), check=True, capture_output=True, text=True
    ).stdout
    assert len(listing.splitlines()) == len(MessageId)
    for message_id in MessageId:
        assert f"{message_id.value} ipv6natd: " in listing


def test_empty_fields_are_left_out() -> None:
    assert log_fields(MessageId.STOPPED, container="") == {
        "fields": {"MESSAGE_ID": MessageId.STOPPED.value}
    }
