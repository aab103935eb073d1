"""Which backend is opened, and how it notices writes of other programs."""

from __future__ import annotations

import asyncio
import sys

import pytest

from ipv6natd.firewall import legacy, restore
from ipv6natd.firewall.legacy import LegacyFirewall
from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.firewall.select import open_firewall
from ipv6natd.netfilter.rules import Backend, Table


@pytest.fixture(autouse=True)
def _tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore, "variant_tool", lambda *_: "/usr/sbin/ip6tables")


def test_legacy_without_python_iptables_is_written_by_the_tool_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "iptc", None)
    monkeypatch.delitem(sys.modules, "ipv6natd.firewall.libiptc", raising=False)
    caplog.set_level("INFO")
    assert isinstance(open_firewall(Backend.LEGACY), LegacyFirewall)
    (record,) = caplog.records
    assert record.levelname == "INFO"
    assert record.message.startswith("python-iptables cannot be loaded (")
    assert record.message.endswith("): ip6tables-legacy-restore writes all changes")


def test_the_read_interval_depends_on_what_reports_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit that keeps the size of a legacy table is found within a minute."""
    monkeypatch.setattr(restore, "which", lambda _: "/usr/sbin/nft")
    assert LegacyFirewall(None).read_interval == 60
    assert RestoreFirewall(Backend.NFT).read_interval > 60
    monkeypatch.setattr(restore, "which", lambda _: None)
    unmonitored = RestoreFirewall(Backend.NFT)
    assert unmonitored.read_interval < 2
    asyncio.run(unmonitored.watch(lambda: None))


def test_legacy_watch_reports_tables_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [dict.fromkeys(Table, (0, 0)), dict.fromkeys(Table, (1, 168))]
    monkeypatch.setattr(legacy, "SIZE_CHECK_INTERVAL", 0)
    monkeypatch.setattr(legacy, "table_sizes", lambda: sizes[0])
    monkeypatch.setattr(RestoreFirewall, "read", lambda _: {})
    firewall = LegacyFirewall(None)
    firewall.read()
    changes = 0

    async def scenario() -> None:
        def changed() -> None:
            nonlocal changes
            changes += 1
            sizes.pop(0)
            raise asyncio.CancelledError

        watch = asyncio.create_task(firewall.watch(changed))
        await asyncio.sleep(0.05)
        assert changes == 0
        sizes.reverse()
        await asyncio.wait([watch], timeout=5)

    asyncio.run(scenario())
    assert changes == 1
