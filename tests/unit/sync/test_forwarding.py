"""Forwarding on files that a test may write: what is written in which order, and what goes back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.host.findings import RaDefaultRoute
from ipv6natd.sync import forwarding
from ipv6natd.sync.forwarding import Forwarding


class Host:
    """/proc/sys/net/ipv6/conf of a host with eth0, whose route comes from advertisements."""

    def __init__(self, top: Path, patch: pytest.MonkeyPatch) -> None:
        self.conf, self.state, self.mask = top / "conf", top / "state", top / "mask"
        self.run = top / "run"
        self.record = self.run / "sysctls"
        self.written: list[str] = []
        self.patch = patch
        patch.setattr(forwarding, "_MASK", self.mask)
        patch.setattr(forwarding, "ra_default_routes", self.learned)
        self.advertises = True
        self.reboot()

    def reboot(self) -> None:
        self.record.unlink(missing_ok=True)
        self.set("all/forwarding", "0")
        self.set("eth0/accept_ra", "1")

    def set(self, key: str, value: str) -> None:
        path = self.conf / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")

    def learned(self) -> tuple[RaDefaultRoute, ...]:
        known = RaDefaultRoute(interface="eth0", accept_ra=1, forwarding=False)
        return (known,) if self.advertises else ()

    def forwarding(self, *, wanted: bool = True) -> Forwarding:
        folders = {"STATE_DIRECTORY": str(self.state), "RUNTIME_DIRECTORY": str(self.run)}
        made = Forwarding(wanted=wanted, environ=folders, conf=self.conf)
        write = made._write

        def traced(key: str, value: str) -> None:
            # What was found is on disk before anything is changed.
            assert self.record.exists()
            write(key, value)
            self.written.append(f"{key} {value}")

        self.patch.setattr(made, "_write", traced)
        return made

    @property
    def now(self) -> tuple[str, str]:
        keys = ("all/forwarding", "eth0/accept_ra")
        return tuple((self.conf / key).read_text().strip() for key in keys)  # type: ignore[return-value]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_on_once_the_filter_table_is_in_force_and_back_before_it_goes(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    made = host.forwarding()
    assert host.now == ("0", "1")
    with caplog.at_level("INFO", "ipv6natd"):
        made.follow(True)
        made.follow(True)
        made.follow(False)
    assert host.written == [
        *("eth0/accept_ra 2", "all/forwarding 1"),
        *("all/forwarding 0", "eth0/accept_ra 1"),
    ]
    assert not host.record.exists()
    said = [each.getMessage() for each in caplog.records]
    assert [each.partition(": ")[0].partition(",")[0] for each in said] == [
        "net.ipv6.conf.eth0.accept_ra was 1 and is 2 now",
        "net.ipv6.conf.all.forwarding was 0 and is 1 now",
        "net.ipv6.conf.all.forwarding was 1 and is 0 again",
        "net.ipv6.conf.eth0.accept_ra was 2 and is 1 again",
    ]
    assert all("ip_forward = false in /etc/ipv6natd/ipv6natd.toml" in each for each in said[:2])
    made.follow(True)
    assert host.now == ("1", "2")


def test_what_was_on_stays_on(host: Host) -> None:
    host.set("all/forwarding", "1")
    made = host.forwarding()
    made.follow(True)
    made.follow(False)
    assert host.written == []
    assert host.now == ("1", "1")


def test_advertisements_are_heeded_before_the_engine_has_the_host_forward(host: Host) -> None:
    """It does so with its first network that has IPv6, and the kernel deletes the route then."""
    made = host.forwarding()
    made.heed()
    made.heed()
    assert host.written == ["eth0/accept_ra 2"]
    host.set("all/forwarding", "1")
    made.follow(True)
    made.follow(False)
    assert host.now == ("1", "2")


def test_where_nobody_came_to_forward_that_goes_back_too(host: Host) -> None:
    made = host.forwarding()
    made.heed()
    made.put_back()
    assert host.now == ("0", "1")


def test_a_route_that_is_not_from_advertisements_needs_nothing(host: Host) -> None:
    host.advertises = False
    host.forwarding().heed()
    assert host.written == []
    assert not host.record.exists()


def test_a_restart_remembers_what_was_found(host: Host) -> None:
    host.forwarding().follow(True)
    again = host.forwarding()
    again.follow(True)
    again.follow(False)
    assert host.now == ("0", "1")


def test_what_was_found_before_the_host_was_booted_counts_no_longer(host: Host) -> None:
    host.forwarding().follow(True)
    host.reboot()
    host.set("all/forwarding", "1")
    made = host.forwarding()
    made.follow(True)
    made.follow(False)
    assert host.now == ("1", "2")


def test_an_interface_that_had_such_a_route_before_the_boot_has_none_yet(host: Host) -> None:
    """Advertisements come once the link is up, and would not be heeded then."""
    host.forwarding().heed()
    for _ in range(2):
        host.reboot()
        host.advertises = False
        host.set("all/forwarding", "1")
        host.forwarding().heed()
        assert host.now == ("1", "2")


def test_an_interface_that_comes_late_after_a_boot_is_remembered(host: Host) -> None:
    host.forwarding().heed()
    host.reboot()
    host.advertises = False
    link = host.conf / "eth0/accept_ra"
    link.unlink()
    made = host.forwarding()
    made.follow(True)
    host.set("eth0/accept_ra", "1")
    made.heed()
    assert host.now == ("1", "2")


def test_whoever_switches_it_off_is_obeyed_until_a_restart(host: Host) -> None:
    made = host.forwarding()
    made.follow(True)
    host.set("all/forwarding", "0")
    made.follow(True)
    assert host.now[0] == "0"
    host.forwarding().follow(True)
    assert host.now[0] == "1"


def test_after_a_flush_by_another_process_it_comes_back_with_the_rules(host: Host) -> None:
    made = host.forwarding()
    made.follow(True)
    host.forwarding().put_back()
    assert host.now == ("0", "1")
    made.follow(True)
    assert host.now == ("1", "2")


def test_the_setting_keeps_it_from_being_touched_until_it_is_set_again(host: Host) -> None:
    made = host.forwarding(wanted=False)
    made.follow(True)
    assert host.written == []
    made.adopt(True)
    made.follow(True)
    assert host.now == ("1", "2")
    made.adopt(False)
    made.follow(True)
    made.follow(False)
    assert host.now == ("0", "1")


def test_the_mask_of_an_earlier_package_is_obeyed(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.mask.symlink_to("/dev/null")
    with caplog.at_level("INFO", "ipv6natd"):
        host.forwarding().follow(True)
    assert host.written == []
    assert caplog.messages == [f"forwarding is left alone, as {host.mask} says"]


def test_where_nothing_can_be_written_it_is_said_once_and_nothing_goes_back(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    made = host.forwarding()

    def refused(_key: str, _value: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/proc/sys")

    with host.patch.context() as patch:
        patch.setattr(made, "_write", refused)
        made.follow(True)
        made.follow(True)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("forwarding cannot be prepared: ")
    # Somebody does as the finding says, and it is theirs.
    host.set("all/forwarding", "1")
    made.follow(False)
    assert host.now == ("1", "1")


def test_what_cannot_be_remembered_is_not_changed(host: Host) -> None:
    host.run.write_text("no folder")
    host.forwarding().follow(True)
    assert host.written == []


def test_a_state_folder_that_cannot_be_written_takes_nothing_down(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.state.write_text("no folder")
    host.forwarding().heed()
    assert host.now == ("0", "2")
    assert "cannot be used" in caplog.text
    assert "cannot be written" in caplog.text


def test_what_cannot_be_put_back_keeps_the_rules(host: Host) -> None:
    made = host.forwarding()
    made.follow(True)

    def refused(_key: str, _value: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/proc/sys")

    with host.patch.context() as patch:
        patch.setattr(made, "_write", refused)
        with pytest.raises(FirewallError, match=r"so our rules stay: .*forwarding=0$"):
            made.follow(False)
    assert host.record.exists()
    made.follow(False)
    assert host.now == ("0", "1")


def test_a_record_that_nobody_of_us_wrote_changes_nothing(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.run.mkdir()
    host.record.write_text("../../kernel/core_pattern 0 1\n")
    host.forwarding().put_back()
    assert host.written == []
    assert "no changes of sysctls" in caplog.text


@pytest.mark.parametrize(
    ("name", "kept"),
    [("caf\u00e9", True), ("*", True), ("$(reboot)", True), ("\u2003x", False), ("\udcff", False)],
)
def test_an_interface_of_any_name_lets_the_others_be_switched(
    host: Host, name: str, kept: bool
) -> None:
    host.set(f"{name}/forwarding", "1")
    made = host.forwarding()
    made.follow(True)
    assert host.now == ("1", "2")
    made.follow(False)
    assert host.now == ("0", "1")
    assert (f"{name}/forwarding 1" in host.written) is kept


def test_a_link_in_the_way_of_the_record_is_not_written_through(host: Host) -> None:
    host.run.mkdir()
    theirs = host.run / "theirs"
    theirs.write_text("as it was")
    host.record.with_suffix(".new").symlink_to(theirs)
    host.forwarding().follow(True)
    assert theirs.read_text() == "as it was"
    assert host.now == ("1", "2")
