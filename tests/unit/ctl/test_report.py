"""What a report replaces, and what it keeps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ipv6natd.ctl import report
from ipv6natd.ctl.report import Replacer

NAMES = [
    ("shop", "container"),
    ("shop-db", "container"),
    ("front", "network"),
    ("bridge", "network"),
]


def replaced(key: str, value: Any) -> Any:
    return Replacer(NAMES).replaced({key: value})[key]


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
        ("::ffff:0.0.0.0/96 ::ffff:8.8.8.8", "::ffff:0.0.0.0/96 2001:db8:1::1"),
        ("ff00::/8, ff0e::1, 224.0.0.1", "ff00::/8, ff0e::1, 224.0.0.1"),
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
    found = Replacer(NAMES).replaced(value)
    assert found["Journal"] == ["published [2001:db8:1::1]:80 -> container2"]
    assert found["Mappings"][0]["HostAddress"] == "2001:db8:1::1"


def test_names_that_only_the_journal_has_are_replaced_too(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = (
        {"MESSAGE": "withdrew [::]:80/tcp -> gone [fd00::2]:80", "IPV6NATD_CONTAINER": "gone"},
        {"MESSAGE": [1, 2], "IPV6NATD_NETWORK": [3]},
        {"OTHER": "x"},
    )
    text = "\n".join((*map(json.dumps, lines), "no JSON", "[]"))
    monkeypatch.setattr(report, "output_of", lambda *_, **__: text)
    entries = list(report._journal())
    assert [entry["MESSAGE"] for entry in entries] == [lines[0]["MESSAGE"], [1, 2]]
    names = Replacer(report._journal_names(entries))
    assert names.replaced({"Journal": [lines[0]["MESSAGE"]]}) == {
        "Journal": ["withdrew [::]:80/tcp -> container1 [fd00::2]:80"]
    }
