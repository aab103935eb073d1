"""What forwarding needs of the sysctls, and what goes back: the decision alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipv6natd.host.sysctls import (
    SysctlChange,
    accept_ra_changes,
    accept_ra_interfaces,
    disables_forwarding,
    format_changes,
    forwarding_changes,
    merged,
    parse_changes,
    parse_interfaces,
    reverted,
)

HEED = SysctlChange(key="eth0/accept_ra", previous="1", value="2")
ON = SysctlChange(key="all/forwarding", previous="0", value="1")
OWN = SysctlChange(key="eth1/forwarding", previous="1", value="1")


def test_only_an_interface_that_heeds_advertisements_goes_on_heeding_them() -> None:
    now = {
        "eth0/accept_ra": "1",
        "eth1/accept_ra": "0",
        "eth2/accept_ra": "2",
        "eth3/accept_ra": "",
    }
    assert accept_ra_changes(now, ["eth3", "eth2", "eth1", "eth0", "eth0"]) == (HEED,)


@pytest.mark.parametrize("value", ["1", ""])
def test_where_forwarding_is_on_or_unknown_nothing_is_switched(value: str) -> None:
    assert forwarding_changes({"all/forwarding": value, "eth1/forwarding": "1"}) == ()


def test_what_was_changed_goes_back_forwarding_first() -> None:
    now = {"all/forwarding": "1", "eth0/accept_ra": "2"}
    assert reverted((HEED, ON), now) == (ON, HEED)


@pytest.mark.parametrize(
    ("now", "back"),
    [
        ({"all/forwarding": "0", "eth0/accept_ra": "2"}, (HEED,)),
        ({"all/forwarding": "1", "eth0/accept_ra": "0"}, (ON,)),
        ({"all/forwarding": "1"}, (ON,)),
        ({}, ()),
    ],
)
def test_what_somebody_else_set_since_or_is_gone_stays(
    now: dict[str, str], back: tuple[SysctlChange, ...]
) -> None:
    assert reverted((HEED, ON), now) == back


def test_advertisements_are_heeded_on_as_long_as_somebody_else_forwards() -> None:
    now = {"all/forwarding": "1", "eth0/accept_ra": "2"}
    assert reverted((HEED,), now) == ()
    assert reverted((HEED,), now | {"all/forwarding": "0"}) == (HEED,)


def test_an_interface_that_forwarded_before_all_did_forwards_afterwards() -> None:
    """The kernel writes the value of all to each interface."""
    changes = forwarding_changes(
        {"all/forwarding": "0", "eth1/forwarding": "1", "eth2/forwarding": "0"}
    )
    assert changes == (OWN, ON)
    assert reverted(changes, {"all/forwarding": "1", "eth1/forwarding": "1"}) == (ON, OWN)


def test_what_was_found_first_counts() -> None:
    assert merged((HEED,), (ON, replace(HEED, previous="2"))) == (ON, HEED)


def test_the_interfaces_that_heed_are_those_whose_accept_ra_changed() -> None:
    assert accept_ra_interfaces((HEED, OWN, ON)) == {"eth0"}


@pytest.mark.parametrize(
    "changes", [(), (HEED,), (ON,), (HEED, OWN, ON), (replace(OWN, key="a.b-c/forwarding"),)]
)
def test_changes_come_back_as_they_were(changes: tuple[SysctlChange, ...]) -> None:
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
def test_what_leads_elsewhere_or_is_no_change_is_refused(lines: str) -> None:
    with pytest.raises(ValueError, match="no changes"):
        parse_changes(lines)


@pytest.mark.parametrize("lines", ["..\n", ".\n", "a/b\n", "a b\n", "eth0", "\n", "a" * 16 + "\n"])
def test_what_can_be_no_interface_is_refused(lines: str) -> None:
    with pytest.raises(ValueError, match="no names"):
        parse_interfaces(lines)


def test_names_of_interfaces_are_read_one_a_line() -> None:
    assert parse_interfaces("eth0\nwlan0.7\n") == {"eth0", "wlan0.7"}


def test_a_name_with_dots_is_worded_as_sysctl_takes_it() -> None:
    assert SysctlChange(key="eth0.7/accept_ra", previous="1", value="2").name == (
        "net.ipv6.conf.eth0/7.accept_ra"
    )


@pytest.mark.parametrize(
    ("text", "off"),
    [
        (None, False),
        ("", True),
        ("net.ipv6.conf.all.forwarding = 0\n", True),
        ("# net.ipv6.conf.all.forwarding = 1\n", True),
        ("net.ipv6.conf.all.forwarding = 1\n", False),
        ("-net/ipv6/conf/all/forwarding=1\n", False),
    ],
)
def test_a_file_that_took_the_place_of_an_earlier_packages_is_obeyed(
    text: str | None, off: bool
) -> None:
    assert disables_forwarding(text) is off
