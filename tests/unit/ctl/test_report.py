"""What a report replaces, and what it keeps."""

from __future__ import annotations

from typing import Any

import pytest

from ipv6natd.ctl.report import Replacer

NAMES = [
    ("shop", "container"),
    ("shop-db", "container"),
    ("front", "network"),
    ("bridge", "network"),
]


def replaced(key: str, value: Any) -> Any:
    return Replacer(iter(NAMES)).replaced({key: value})[key]


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("shop", "container2"),
        ("port of shop: see shop-db", "port of container2: see container3"),
        ("network 'front'", "network 'network1'"),
        ("bridge", "bridge"),
        ("workshop shops shop.example", "workshop shops container2.example"),
        ("at [2a01:4f8::1]:80", "at [2001:db8:1::1]:80"),
        (
            "2a01:4f8::1 and 2a01:4f8::2, 2a01:4f9::1",
            "2001:db8:1::1 and 2001:db8:1::2, 2001:db8:2::1",
        ),
        ("2a01:4f8:0:1::/64", "2001:db8:1::/64"),
        ("fd00:a::2, fe80::1, ::1, 2001:db8::7, ::", "fd00:a::2, fe80::1, ::1, 2001:db8::7, ::"),
        ("from 8.8.8.8 to 192.168.0.1", "from 198.51.0.1 to 192.168.0.1"),
        ("tcp://engine.example.org:2376 failed", "tcp://engine:2376 failed"),
        ("12:00:00 28.5.2 1.2.3", "12:00:00 28.5.2 1.2.3"),
    ],
)
def test_names_and_public_addresses_are_replaced(text: str, other: str) -> None:
    assert replaced("Text", text) == other
    assert replaced("Warnings", [text]) == [other]


def test_words_of_rules_are_no_names() -> None:
    assert replaced("Rules", "-A shop -d 2a01:4f8::1/128 -j front") == (
        "-A shop -d 2001:db8:1::1/128 -j front"
    )


def test_the_same_text_has_the_same_replacement_everywhere() -> None:
    value = {
        "Mappings": [{"ContainerName": "shop", "HostAddress": "2a01:4f8::1"}],
        "Journal": ["published [2a01:4f8::1]:80 -> shop"],
    }
    found = Replacer(iter(NAMES)).replaced(value)
    assert found["Journal"] == ["published [2001:db8:1::1]:80 -> container2"]
    assert found["Mappings"][0]["HostAddress"] == "2001:db8:1::1"
