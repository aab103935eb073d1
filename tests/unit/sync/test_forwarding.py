"""Forwarding on files of the test: the order of the writes, and the restored values."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from ipv6natd.firewall.backend import FirewallError
from ipv6natd.host.findings import RaDefaultRoute
from ipv6natd.sync import forwarding
from ipv6natd.sync.forwarding import Forwarding
from ipv6natd.sync.saved_rules import write_saved


class Killed(BaseException):
    """Replaces SIGKILL: nothing of the daemon handles it."""


class Host:
    """/proc/sys/net/ipv6/conf of a host with eth0, whose default route comes from RA."""

    def __init__(self, top: Path, patch: pytest.MonkeyPatch) -> None:
        self.conf, self.state, self.mask = top / "conf", top / "state", top / "mask"
        self.run = top / "run"
        self.record = self.run / "sysctls"
        self.written: list[str] = []
        self.patch = patch
        patch.setenv("STATE_DIRECTORY", str(self.state))
        patch.setenv("RUNTIME_DIRECTORY", str(self.run))
        patch.setattr(forwarding, "_CONF", self.conf)
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
        forwarding_ = Forwarding(wanted=wanted)
        write = forwarding_._write

        def traced(key: str, value: str) -> None:
            # The old values are on disk before a change.
            assert self.record.exists()
            write(key, value)
            if key == "all/forwarding":
                self.set_all(value)
            self.written.append(f"{key} {value}")

        self.patch.setattr(forwarding_, "_write", traced)
        return forwarding_

    def set_all(self, value: str) -> None:
        """As the kernel does: a change of all/forwarding changes every interface."""
        for path in self.conf.glob("*/forwarding"):
            path.write_text(f"{value}\n")

    def get(self, key: str) -> str:
        return (self.conf / key).read_text().strip()

    def kill_restore(self, after: int) -> bool:
        """Begin to remove the rules, and kill the process after so many writes and saves; return
        whether it was killed."""
        forwarding_, done = self.forwarding(), 0

        def limited(call: Callable[..., None]) -> Callable[..., None]:
            def counted(*args: object, **kwargs: object) -> None:
                nonlocal done
                if done == after:
                    raise Killed
                done += 1
                call(*args, **kwargs)

            return counted

        with self.patch.context() as patch:
            patch.setattr(forwarding_, "_write", limited(forwarding_._write))
            patch.setattr(forwarding, "write_saved", limited(write_saved))
            patch.setattr(Path, "unlink", limited(Path.unlink))
            with suppress(Killed):
                forwarding_.restore()
                return False
        return True

    @property
    def now(self) -> tuple[str, str]:
        return self.get("all/forwarding"), self.get("eth0/accept_ra")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_forwarding_is_on_while_the_filter_table_is_in_force(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    forwarding_ = host.forwarding()
    assert host.now == ("0", "1")
    with caplog.at_level("INFO", "ipv6natd"):
        forwarding_.update(True)
        forwarding_.update(True)
        forwarding_.update(False)
    assert host.written == [
        *("eth0/accept_ra 2", "all/forwarding 1"),
        *("all/forwarding 0", "eth0/accept_ra 1"),
    ]
    assert not host.record.exists()
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(": ")[0].partition(",")[0] for message in messages] == [
        "net.ipv6.conf.eth0.accept_ra was 1 and is 2 now",
        "net.ipv6.conf.all.forwarding was 0 and is 1 now",
        "net.ipv6.conf.all.forwarding was 1 and is 0 again",
        "net.ipv6.conf.eth0.accept_ra was 2 and is 1 again",
    ]
    assert all(
        "ip_forward = false in /etc/ipv6natd/ipv6natd.toml" in message for message in messages[:2]
    )
    forwarding_.update(True)
    assert host.now == ("1", "2")


def test_forwarding_that_was_on_is_not_changed(host: Host) -> None:
    host.set("all/forwarding", "1")
    forwarding_ = host.forwarding()
    forwarding_.update(True)
    forwarding_.update(False)
    assert host.written == []
    assert host.now == ("1", "1")


def test_accept_ra_is_set_before_the_engine_switches_forwarding_on(host: Host) -> None:
    """The engine does so with its first IPv6 network; the kernel would delete the route then."""
    forwarding_ = host.forwarding()
    forwarding_.keep_ra_routes()
    forwarding_.keep_ra_routes()
    assert host.written == ["eth0/accept_ra 2"]
    host.set("all/forwarding", "1")
    forwarding_.update(True)
    forwarding_.update(False)
    assert host.now == ("1", "2")


def test_accept_ra_is_restored_if_forwarding_stays_off(host: Host) -> None:
    forwarding_ = host.forwarding()
    forwarding_.keep_ra_routes()
    forwarding_.restore()
    assert host.now == ("0", "1")


def test_accept_ra_is_not_changed_without_a_default_route_from_ra(host: Host) -> None:
    host.advertises = False
    host.forwarding().keep_ra_routes()
    assert host.written == []
    assert not host.record.exists()


def test_saved_port_of_a_bridge_is_not_changed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """An earlier version saved the ports of containers that advertised a route."""
    monkeypatch.setattr(forwarding, "is_bridge_port", "veth1".__eq__)
    host.advertises = False
    host.set("veth1/accept_ra", "1")
    host.state.mkdir(exist_ok=True)
    (host.state / forwarding.RA_INTERFACES_FILE).write_text("eth0\nveth1\n")
    host.forwarding().keep_ra_routes()
    assert host.written == ["eth0/accept_ra 2"]


def test_restart_restores_the_values_from_the_record(host: Host) -> None:
    host.forwarding().update(True)
    again = host.forwarding()
    again.update(True)
    again.update(False)
    assert host.now == ("0", "1")


def test_record_of_an_earlier_boot_is_not_used(host: Host) -> None:
    host.forwarding().update(True)
    host.reboot()
    host.set("all/forwarding", "1")
    forwarding_ = host.forwarding()
    forwarding_.update(True)
    forwarding_.update(False)
    assert host.now == ("1", "2")


def test_saved_ra_interface_without_a_route_after_boot_gets_accept_ra(host: Host) -> None:
    """Advertisements arrive when the link is up, and would be ignored."""
    host.forwarding().keep_ra_routes()
    for _ in range(2):
        host.reboot()
        host.advertises = False
        host.set("all/forwarding", "1")
        host.forwarding().keep_ra_routes()
        assert host.now == ("1", "2")


def test_saved_ra_interface_that_appears_late_gets_accept_ra(host: Host) -> None:
    host.forwarding().keep_ra_routes()
    host.reboot()
    host.advertises = False
    link = host.conf / "eth0/accept_ra"
    link.unlink()
    forwarding_ = host.forwarding()
    forwarding_.update(True)
    host.set("eth0/accept_ra", "1")
    forwarding_.keep_ra_routes()
    assert host.now == ("1", "2")


def test_forwarding_switched_off_by_others_stays_off_until_a_restart(host: Host) -> None:
    forwarding_ = host.forwarding()
    forwarding_.update(True)
    host.set("all/forwarding", "0")
    forwarding_.update(True)
    assert host.now[0] == "0"
    host.forwarding().update(True)
    assert host.now[0] == "1"


def test_forwarding_is_on_again_after_a_flush_by_another_process(host: Host) -> None:
    forwarding_ = host.forwarding()
    forwarding_.update(True)
    host.forwarding().restore()
    assert host.now == ("0", "1")
    forwarding_.update(True)
    assert host.now == ("1", "2")


def test_forwarding_is_not_changed_while_ip_forward_is_false(host: Host) -> None:
    forwarding_ = host.forwarding(wanted=False)
    forwarding_.update(True)
    assert host.written == []
    forwarding_.wanted = True
    forwarding_.update(True)
    assert host.now == ("1", "2")
    forwarding_.wanted = False
    forwarding_.update(True)
    forwarding_.update(False)
    assert host.now == ("0", "1")


def test_masked_sysctl_file_leaves_forwarding_unchanged(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.mask.symlink_to("/dev/null")
    with caplog.at_level("INFO", "ipv6natd"):
        host.forwarding().update(True)
    assert host.written == []
    assert caplog.messages == [f"forwarding is not changed: {host.mask} disables it"]


def test_failed_write_is_logged_once_and_nothing_is_restored(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    forwarding_ = host.forwarding()

    def refused(_key: str, _value: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/proc/sys")

    with host.patch.context() as patch:
        patch.setattr(forwarding_, "_write", refused)
        forwarding_.update(True)
        forwarding_.update(True)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("cannot change forwarding: ")
    # An administrator follows the finding. This value is not ours to restore.
    host.set("all/forwarding", "1")
    forwarding_.update(False)
    assert host.now == ("1", "1")


def test_nothing_is_changed_if_the_record_cannot_be_written(host: Host) -> None:
    host.run.write_text("no folder")
    host.forwarding().update(True)
    assert host.written == []


def test_state_folder_that_cannot_be_written_is_logged(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.state.write_text("no folder")
    host.forwarding().keep_ra_routes()
    assert host.now == ("0", "2")
    assert "cannot be used" in caplog.text
    assert "cannot be written" in caplog.text


def test_failed_restore_raises_and_keeps_the_record(host: Host) -> None:
    forwarding_ = host.forwarding()
    forwarding_.update(True)

    def refused(_key: str, _value: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "/proc/sys")

    with host.patch.context() as patch:
        patch.setattr(forwarding_, "_write", refused)
        with pytest.raises(FirewallError, match=r"so our rules stay in force: .*forwarding=0$"):
            forwarding_.update(False)
    assert host.record.exists()
    forwarding_.update(False)
    assert host.now == ("0", "1")


MAX_STEPS = 7
"""Of a removal: two saves, four values, and the deletion of the record."""


def forwards_on_two(host: Host) -> None:
    """Two of three interfaces forward before the start."""
    for name, value in (("e1", "1"), ("e2", "0"), ("e3", "1")):
        host.set(f"{name}/forwarding", value)


@pytest.mark.parametrize("starts_between", [False, True])
@pytest.mark.parametrize("after", range(MAX_STEPS + 1))
def test_removal_that_is_repeated_after_a_kill_restores_what_was_found(
    host: Host, after: int, starts_between: bool
) -> None:
    forwards_on_two(host)
    host.forwarding().update(True)
    assert host.kill_restore(after) is (after < MAX_STEPS)
    if starts_between:
        host.forwarding().update(True)
        assert host.now == ("1", "2")
    host.forwarding().restore()
    assert [host.get(f"{name}/forwarding") for name in ("e1", "e2", "e3")] == ["1", "0", "1"]
    assert host.now == ("0", "1")
    assert not host.record.exists()


def test_two_kills_in_one_removal_restore_what_was_found(host: Host) -> None:
    for first in range(MAX_STEPS):
        for second in range(MAX_STEPS):
            host.reboot()
            forwards_on_two(host)
            host.forwarding().update(True)
            host.kill_restore(first)
            host.kill_restore(second)
            host.forwarding().restore()
            assert [host.get(f"e{n}/forwarding") for n in (1, 2, 3)] == ["1", "0", "1"]
            assert host.now == ("0", "1")


@pytest.mark.parametrize("after", range(MAX_STEPS))
def test_interface_that_others_switched_off_stays_off_after_a_kill(host: Host, after: int) -> None:
    forwards_on_two(host)
    host.forwarding().update(True)
    host.set("e1/forwarding", "0")
    host.kill_restore(after)
    host.forwarding().restore()
    assert [host.get(f"e{n}/forwarding") for n in (1, 2, 3)] == ["0", "0", "1"]


@pytest.mark.parametrize("after", [0, 1])
def test_interface_switched_off_after_a_kill_stays_off(host: Host, after: int) -> None:
    """While the host forwards, the 0 of an interface is not ours."""
    forwards_on_two(host)
    host.forwarding().update(True)
    host.kill_restore(after)
    assert host.get("all/forwarding") == "1"
    host.set("e1/forwarding", "0")
    host.forwarding().restore()
    assert [host.get(f"e{n}/forwarding") for n in (1, 2, 3)] == ["0", "0", "1"]


@pytest.mark.parametrize("after", range(3, MAX_STEPS))
def test_forwarding_that_others_switch_on_after_a_kill_stays_on(host: Host, after: int) -> None:
    forwards_on_two(host)
    host.forwarding().update(True)
    host.kill_restore(after)
    host.set("all/forwarding", "1")
    host.set_all("1")
    host.forwarding().restore()
    assert [host.get(f"{name}/forwarding") for name in ("all", "e1", "e2", "e3")] == ["1"] * 4


def test_everything_switched_off_by_others_stays_off(host: Host) -> None:
    """Also after a removal that was killed, and the next start."""
    forwards_on_two(host)
    host.forwarding().update(True)
    host.kill_restore(2)
    host.forwarding().update(True)
    host.set_all("0")
    host.forwarding().restore()
    assert [host.get(f"e{n}/forwarding") for n in (1, 2, 3)] == ["0"] * 3


def test_values_are_restored_if_the_record_cannot_be_written_again(host: Host) -> None:
    forwards_on_two(host)
    forwarding_ = host.forwarding()
    forwarding_.update(True)

    def full(_path: Path, _text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    host.patch.setattr(forwarding, "write_saved", full)
    forwarding_.update(False)
    assert [host.get(f"e{n}/forwarding") for n in (1, 2, 3)] == ["1", "0", "1"]
    assert not host.record.exists()


def test_foreign_record_changes_nothing(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    host.run.mkdir()
    host.record.write_text("../../kernel/core_pattern 0 1\n")
    host.forwarding().restore()
    assert host.written == []
    assert "not a list of sysctl changes" in caplog.text


@pytest.mark.parametrize(
    ("name", "recorded"),
    [("caf\u00e9", True), ("*", True), ("$(reboot)", True), ("\u2003x", False), ("\udcff", False)],
)
def test_interface_with_any_name_does_not_block_the_others(
    host: Host, name: str, recorded: bool
) -> None:
    host.set(f"{name}/forwarding", "1")
    forwarding_ = host.forwarding()
    forwarding_.update(True)
    assert host.now == ("1", "2")
    forwarding_.update(False)
    assert host.now == ("0", "1")
    assert (f"{name}/forwarding 1" in host.written) is recorded


def test_record_is_not_written_through_a_link(host: Host) -> None:
    host.run.mkdir()
    theirs = host.run / "theirs"
    theirs.write_text("as it was")
    host.record.with_suffix(".new").symlink_to(theirs)
    host.forwarding().update(True)
    assert theirs.read_text() == "as it was"
    assert host.now == ("1", "2")
