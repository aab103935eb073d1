"""What a report replaces, and what it keeps."""

from __future__ import annotations

import json
from ipaddress import IPv6Address, IPv6Network
from typing import Any
from urllib.parse import quote

import pytest

from ipv6natd.ctl import report
from ipv6natd.ctl.replacer import Replacer, engine_hosts, own_hosts
from ipv6natd.system.terminal import printable

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
        ("::ffff:0.0.0.0/96 ::ffff:8.8.8.8", "::ffff:0.0.0.0/96 ::ffff:198.51.0.1"),
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
        {"MESSAGE": list(b"the network a\x1bb"), "IPV6NATD_NETWORK": list(b"a\x1bb")},
        {"MESSAGE": ["two", "fields of gone"], "IPV6NATD_NETWORK": None},
        {"OTHER": "x"},
    )
    text = "\n".join((*map(json.dumps, lines), "no JSON", "[]"))
    monkeypatch.setattr(report, "output_of", lambda *_, **__: text)
    entries = list(report._journal())
    texts = [text for entry in entries for text in report._field_texts(entry["MESSAGE"])]
    assert Replacer(report._journal_names(entries)).replaced({"Journal": texts}) == {
        "Journal": [
            "withdrew [::]:80/tcp -> container2 [fd00::2]:80",
            "the network network1",
            "two",
            "fields of container2",
        ]
    }


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("dnat to 9.9.9.9:25, 8.8.8.8:53", "dnat to 198.51.0.1:25, 198.51.0.2:53"),
        ("ip:9.9.9.9. bad:9.9.9.9/32: no", "ip:198.51.0.1. bad:198.51.0.1/32: no"),
        ("9.9.9.9-9.9.9.9,9.9.9.9eth0", "198.51.0.1-198.51.0.1,198.51.0.1eth0"),
        ("cannot bind 2a00:1450::5: in use", "cannot bind 2001:db8:1::1: in use"),
        ("to 2a00:1450::5.", "to 2001:db8:1::1."),
        ("2A00:1450:0000:0:000:0:0:0005, 2a00:1450::5", "2001:db8:1::1, 2001:db8:1::1"),
        ("[2a00:1450::5%eth0]:53 2a00:1450::5%eth0", "[2001:db8:1::1%eth0]:53 2001:db8:1::1%eth0"),
        ("2a00:1450:0:0:1:2:3:4:8080", "2001:db8:1::1:8080"),
        ("id:2a00:1450::5;", "id:2001:db8:1::1;"),
        ("_2a00:1450::5 x2a00:1450::5", "_2001:db8:1::1 x2a00:2001:db8:2::1"),
        (
            "line\\n2a00:1450::5\\x1b9.9.9.9\\t8.8.8.8",
            "line\\n2001:db8:1::1\\x1b198.51.0.1\\t198.51.0.2",
        ),
        (
            "vmap { 2a00:1450::5 : drop, 9.9.9.9 : accept }",
            "vmap { 2001:db8:1::1 : drop, 198.51.0.1 : accept }",
        ),
        ('{"addr": "2a00:1450::5", "len": 64}', '{"addr": "2001:db8:1::1", "len": 64}'),
        ('{"daddr":"9.9.9.9","port":[1,2]}', '{"daddr":"198.51.0.1","port":[1,2]}'),
        ("HTTP to 2a00:1450:4001:82", "HTTP to 2001:db8:1::"),
        (
            "02:42:ac:11:00:02 [12:3456] 1:2:3 fe80::1:",
            "02:42:ac:11:00:02 [12:3456] 1:2:3 fe80::1:",
        ),
        ("::: a:b 03:14:29.5 2026-12-01T03:14:29", "::: a:b 03:14:29.5 2026-12-01T03:14:29"),
        (":::80 [::]:80-90 0.0.0.0:80->80", ":::80 [::]:80-90 0.0.0.0:80->80"),
    ],
)
def test_addresses_are_found_in_all_surroundings(text: str, other: str) -> None:
    assert replaced("Journal", text) == other
    assert replaced("Tables", {"nft": text})["nft"] == other


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("2002:909:909::1", "2001:db8:1::1"),
        ("2001:0:909:909::1", "2001:db8:1::1"),
        ("::ffff:9.9.9.9 ::FFFF:909:909 9.9.9.9", "::ffff:198.51.0.1 ::ffff:198.51.0.1 198.51.0.1"),
        ("64:ff9b::909:909 64:ff9b::9.9.9.9", "64:ff9b::c633:1 64:ff9b::c633:1"),
        ("64:ff9b:1::909:909, ::9.9.9.9", "64:ff9b:1::c633:1, 2001:db8:1::1"),
        ("fe80::5efe:909:909 fd00::9.9.9.9", "fe80::5efe:c633:1 fd00::c633:1"),
        ("::ffff:10.0.0.1 64:ff9b::a00:1", "::ffff:10.0.0.1 64:ff9b::a00:1"),
        ("ff3e:40:2a00:1450::1", "2001:db8:1::1"),
    ],
)
def test_public_addresses_inside_of_addresses_are_replaced(text: str, other: str) -> None:
    assert replaced("Text", text) == other


@pytest.mark.parametrize("prefix", ["2a00::/12", "2a00:1450::/32", "2a00:1450:8::/45"])
def test_networks_stay_networks(prefix: str) -> None:
    assert replaced("Facts", prefix) != prefix
    IPv6Network(replaced("Facts", prefix))


def test_any_number_of_addresses_can_be_replaced() -> None:
    groups = [f"{number >> 16:x}:{number & 0xFFFF:x}" for number in range(70_000)]
    texts = [f"2a00:0:{each}:1:0:{each}" for each in groups]
    assert len({IPv6Address(text) for text in replaced("Journal", texts)}) == 70_000


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("tcp://[2a00:1450:4001:82b::5]:2376 failed", "tcp://engine:2376 failed"),
        ("tcp://[2a00:1450:4001:82", "tcp://engine"),
        ("tcp://%5B2a00%3A1450%3A%3A5%5D:2376", "tcp://engine:2376"),
        ("'tcp%3A%2F%2Fcorp.example%3A2376'", "'tcp://engine:2376'"),
        ("tcp://user:a@b@corp.example:2376/v1", "tcp://engine:2376/v1"),
        ("ssh://root@corp.example", "ssh://engine"),
        ("HTTPS://Corp.example:2376", "HTTPS://engine:2376"),
        ("unix:///run/docker.sock http+unix://%2Frun", "unix:///run/docker.sock http+unix://%2Frun"),
        ("Pool(host='corp.example', port=2376)", "Pool(host='engine', port=2376)"),
        ("Pool(host='9.9.9.9', port=1)", "Pool(host='198.51.0.1', port=1)"),
        ("Failed to resolve 'corp.example' ([Errno -2]", "Failed to resolve 'engine' ([Errno -2]"),
        ("certificate is not valid for 'corp.example'.", "certificate is not valid for 'engine'."),
        ("hostname 'a.example' doesn't match", "hostname 'engine' doesn't match"),
        ("match either of 'b.example', '*.c.example'", "match either of 'engine', 'engine'"),
        ("of Pool(host='corp.exa", "of Pool(host='engine"),
    ],
)  # fmt: skip
def test_the_host_of_the_engine_is_replaced(text: str, other: str) -> None:
    assert replaced("StateReason", text) == other
    assert replaced("Journal", [text]) == [other]


def test_names_of_hosts_are_replaced_in_all_sentences() -> None:
    value = {
        "Status": {"StateReason": "cannot reach tcp://Eng.corp.example:2376"},
        "Journal": ["no route to eng.corp.example.", "box.corp.example, box: 9.9.9.9, web"],
    }
    names = [*own_hosts("box.corp.example"), *own_hosts("web"), *engine_hosts(value)]
    found = Replacer([*names, ("web", "container")]).replaced(value)
    assert found["Journal"] == [
        "no route to engine.",
        "this-host, this-host: 198.51.0.1, container1",
    ]


@pytest.mark.parametrize(
    "name", ["my\x1b[31m", "a\u202eb", "it's", 'say "a"', "b\u00fccher", "x%41"]
)
def test_escaped_names_are_replaced(name: str) -> None:
    replacer = Replacer([(name, "network")])
    quoted = (printable(name), repr(name)[1:-1], ascii(name)[1:-1], json.dumps(name)[1:-1])
    for each in (name, *quoted, quote(name, safe="")):
        assert replacer.replaced({"Journal": f"of {each}: no"}) == {"Journal": "of network1: no"}


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("shop.front: shop-db.front", "container2.network1: container3.network1"),
        ("error\\nshop: \\x1bshop-db", "error\\ncontainer2: \\x1bcontainer3"),
        ("/shop front/shop", "/container2 network1/container2"),
        ("(front) --network=front 'shop'", "(network1) --network=network1 'container2'"),
        ("shops my-shop shop_1 net.front", "shops my-shop shop_1 net.front"),
        ("""b'{"Id":"1","Names":["/shop-new'""", """b'{"Id":"1","Names":["""),
    ],
)
def test_names_are_found_in_all_surroundings(text: str, other: str) -> None:
    assert replaced("Journal", text) == other
