"""Decisions about sysctls for forwarding."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipv6natd.host.sysctls import (
    SysctlChange,
    accept_ra_changes,
    accept_ra_interfaces,
    begun,
    disables_forwarding,
    format_changes,
    forwarding_changes,
    merged,
    parse_changes,
    parse_interfaces,
    reverted,
)

ACCEPT_RA = SysctlChange(key="eth0/accept_ra", previous="1", value="2")
ON = SysctlChange(key="all/forwarding", previous="0", value="1")
ALREADY_ON = SysctlChange(key="eth1/forwarding", previous="1", value="1")


def test_accept_ra_changes_only_for_interfaces_with_1() -> None:
    now = {
        "eth0/accept_ra": "1",
        "eth1/accept_ra": "0",
        "eth2/accept_ra": "2",
        "eth3/accept_ra": "",
    }
    assert accept_ra_changes(now, ["eth3", "eth2", "eth1", "eth0", "eth0"]) == (ACCEPT_RA,)


@pytest.mark.parametrize("value", ["1", ""])
def test_forwarding_changes_are_empty_if_forwarding_is_on_or_unknown(value: str) -> None:
    assert forwarding_changes({"all/forwarding": value, "eth1/forwarding": "1"}) == ()


def test_reverted_begins_with_forwarding() -> None:
    now = {"all/forwarding": "1", "eth0/accept_ra": "2"}
    assert reverted((ACCEPT_RA, ON), now) == (ON, ACCEPT_RA)


@pytest.mark.parametrize(
    ("now", "back"),
    [
        ({"all/forwarding": "0", "eth0/accept_ra": "2"}, (ACCEPT_RA,)),
        ({"all/forwarding": "1", "eth0/accept_ra": "0"}, (ON,)),
        ({"all/forwarding": "1"}, (ON,)),
        ({}, ()),
    ],
)
def test_reverted_omits_values_that_others_changed_or_removed(
    now: dict[str, str], back: tuple[SysctlChange, ...]
) -> None:
    assert reverted((ACCEPT_RA, ON), now) == back


def test_reverted_keeps_accept_ra_while_another_program_forwards() -> None:
    now = {"all/forwarding": "1", "eth0/accept_ra": "2"}
    assert reverted((ACCEPT_RA,), now) == ()
    assert reverted((ACCEPT_RA,), now | {"all/forwarding": "0"}) == (ACCEPT_RA,)


def test_reverted_restores_an_interface_that_forwarded_before() -> None:
    """A write to all/forwarding sets the value of every interface."""
    changes = forwarding_changes(
        {"all/forwarding": "0", "eth1/forwarding": "1", "eth2/forwarding": "0"}
    )
    assert changes == (ALREADY_ON, ON)
    assert reverted(changes, {"all/forwarding": "1", "eth1/forwarding": "1"}) == (ON, ALREADY_ON)


def test_reverted_finishes_a_restore_that_has_begun() -> None:
    """The 0 of an interface is ours after forwarding was switched off, and not before."""
    saved = parse_changes(format_changes(begun((ON, ALREADY_ON))))
    off = {"all/forwarding": "0", "eth1/forwarding": "0"}
    assert [change.key for change in reverted(saved, off)] == ["eth1/forwarding"]
    assert reverted(saved, {"all/forwarding": "1", "eth1/forwarding": "0"}) == (ON,)
    assert reverted((ON, ALREADY_ON), off) == ()


def test_merged_ends_a_restore_that_had_begun_if_forwarding_is_switched_on() -> None:
    saved = begun((ON, ALREADY_ON))
    assert set(merged(saved, (ON,))) == {ON, ALREADY_ON}
    assert set(merged(saved, (ACCEPT_RA,))) == {*saved, ACCEPT_RA}


def test_merged_keeps_the_first_previous_value() -> None:
    assert merged((ACCEPT_RA,), (ON, replace(ACCEPT_RA, previous="2"))) == (ON, ACCEPT_RA)


def test_accept_ra_interfaces_are_those_with_a_change() -> None:
    assert accept_ra_interfaces((ACCEPT_RA, ALREADY_ON, ON)) == {"eth0"}


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (ACCEPT_RA,),
        (ON,),
        (ACCEPT_RA, ALREADY_ON, ON),
        (replace(ALREADY_ON, key="a.b-c/forwarding"),),
    ],
)
def test_parse_changes_returns_the_formatted_changes(changes: tuple[SysctlChange, ...]) -> None:
    assert parse_changes(format_changes(changes)) == changes


@pytest.mark.parametrize(
    "lines",
    [
        "x",
        "all/forwarding 0\n",
        "all/forwarding 0 1",
        "all/forwarding 0 1 2\n",
        "all/forwarding 0 7\n",
        "all/disable_ipv6 0 1\n",
        "../forwarding 0 1\n",
        "./accept_ra 0 1\n",
        "../../../kernel/core_pattern 0 1\n",
        "a/b/forwarding 0 1\n",
        "/etc/accept_ra 0 1\n",
        "0123456789abcdef/accept_ra 0 1\n",
        "eth0/accept_ra 1 2\n\n",
    ],
)
def test_parse_changes_rejects_other_paths_and_other_text(lines: str) -> None:
    with pytest.raises(ValueError, match="not a list of sysctl changes"):
        parse_changes(lines)


@pytest.mark.parametrize("lines", ["..\n", ".\n", "a/b\n", "a b\n", "eth0", "\n", "a" * 16 + "\n"])
def test_parse_interfaces_rejects_invalid_names(lines: str) -> None:
    with pytest.raises(ValueError, match="not a list of interface names"):
        parse_interfaces(lines)


def test_parse_interfaces_reads_one_name_per_line() -> None:
    assert parse_interfaces("eth0\nwlan0.7\n") == {"eth0", "wlan0.7"}


def test_sysctl_name_of_an_interface_with_dots() -> None:
    assert SysctlChange(key="eth0.7/accept_ra", previous="1", value="2").name == (
        "net.ipv6.conf.eth0/7.accept_ra"
    )


@pytest.mark.parametrize(
    ("text", "off"),
    [
        ("", True),
        ("net.ipv6.conf.all.forwarding = 0\n", True),
        ("# net.ipv6.conf.all.forwarding = 1\n", True),
        ("net.ipv6.conf.all.forwarding = 1\n", False),
        ("-net/ipv6/conf/all/forwarding=1\n", False),
    ],
)
def test_disables_forwarding_by_the_file_of_earlier_packages(text: str, off: bool) -> None:
    assert disables_forwarding(text) is off
