"""Settings from files, environment and flags; an error names source, key and legal values."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

from ipv6natd import config
from ipv6natd.config import (
    KEYS,
    ConfigError,
    Layer,
    Settings,
    environment_layer,
    example,
    file_layer,
    load,
    settings,
)
from ipv6natd.model import Policy

# key: default, (value in a file, setting) ..., values that are not legal
TABLE: dict[str, tuple[object, list[tuple[Any, object]], list[Any]]] = {
    "endpoint": (
        "unix:///run/docker.sock",
        [
            ("unix:///run/other.sock", "unix:///run/other.sock"),
            ("tcp://192.0.2.1:2375", "tcp://192.0.2.1:2375"),
            ("https://h:1", "https://h:1"),
        ],
        ["", "docker.sock", "unix://docker.sock", "ssh://h", "fd://", "tcp://", 5, "unix:///\0"],
    ),
    "cert_path": ("", [("", ""), ("/etc/docker", "/etc/docker")], ["certs", "/a\0b", 5, [], True]),
    "tls_verify": (False, [(True, True)], ["true", 1, "", []]),
    "retry": (True, [(False, False)], ["false", 0, None]),
    "cleanup": (False, [(True, True)], ["yes", 1]),
    "debug": (False, [(True, True)], ["on", 1]),
    "backend": (
        "auto",
        [("nft", "nft"), ("legacy", "legacy")],
        ["nftables", "", "NFT", 5, ["nft"], {}],
    ),
    "ip_forward": (True, [(False, False)], ["no", 0]),
    "nat_prefixes": (
        (IPv6Network("fc00::/7"),),
        [
            (["fd00::/8"], (IPv6Network("fd00::/8"),)),
            (
                ["fc00::/7", "2001:db8::/32"],
                (IPv6Network("fc00::/7"), IPv6Network("2001:db8::/32")),
            ),
        ],
        [
            [],
            "fc00::/7",
            ["fc00::"],
            ["fc00::1/7"],
            ["192.0.2.0/24"],
            ["fc00::/129"],
            ["fc00::%eth0/7"],
            ["fc00::/7", 5],
            {},
        ],
    ),
    "ipv4_any_means_ipv6": (False, [(True, True)], ["0.0.0.0", 1]),
    "address_map": (
        {},
        [
            ({}, {}),
            (
                {"192.0.2.10": "2001:db8:1::10"},
                {IPv4Address("192.0.2.10"): IPv6Address("2001:db8:1::10")},
            ),
        ],
        ["192.0.2.10", {"x": "2001:db8::1"}, {"192.0.2.10": "192.0.2.10"}, {"192.0.2.10": 5}, []],
    ),
    "allow_direct_routing": (False, [(True, True)], ["yes", 1]),
    "accept_fwmark": (
        None,
        [("", None), ("0x1", (1, 0xFFFFFFFF)), ("0x1/0x3", (1, 3)), ("16/16", (16, 16))],
        [5, "x", "0x1/x", "-1", "0x100000000", "1/0x100000000", "1 -j ACCEPT", True],
    ),
    "resync_interval": (
        300,
        [(10, 10), (86400, 86400)],
        [9, 86401, 0, -1, "300", 300.0, True, None],
    ),
    "metrics_textfile": (
        "",
        [("", ""), ("/var/lib/a.prom", "/var/lib/a.prom")],
        ["a.prom", "/a.txt", "/a\0.prom", 5, [], True],
    ),
}
LEGAL = [(key, value, then) for key, (_, good, _) in TABLE.items() for value, then in good]
ILLEGAL = [(key, value) for key, (*_, bad) in TABLE.items() for value in bad]


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An /etc/ipv6natd of its own, with an empty conf.d."""
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "ipv6natd.toml")
    monkeypatch.setattr(config, "DEFAULT_DIRECTORY", tmp_path / "conf.d")
    (tmp_path / "conf.d").mkdir()
    return tmp_path


def test_every_key_is_in_the_table() -> None:
    assert [key.name for key in KEYS] == list(TABLE)


@pytest.mark.parametrize("key", TABLE)
def test_every_key_has_its_default(key: str) -> None:
    assert getattr(settings([]), key) == TABLE[key][0]


@pytest.mark.parametrize(("key", "value", "then"), LEGAL)
def test_a_legal_value_is_taken(key: str, value: Any, then: object) -> None:
    assert getattr(settings([Layer("a file", {key: value})]), key) == then


@pytest.mark.parametrize(("key", "value"), ILLEGAL)
def test_an_illegal_value_names_file_key_and_what_is_legal(key: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        settings([Layer("/etc/x.toml", {key: value})])
    message = str(caught.value)
    legal = next(key_.legal for key_ in KEYS if key_.name == key)
    assert message.startswith(f"/etc/x.toml: {key} = ")
    assert message.endswith(f"must be {legal}")
    assert message.isprintable()


def test_a_long_illegal_value_is_shown_cut() -> None:
    with pytest.raises(ConfigError) as caught:
        settings([Layer("f", {"backend": "\n" * 10_000})])
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("endpont", "did you mean 'endpoint'? "),
        ("nat_prefix", "did you mean 'nat_prefixes'? "),
        ("resync-interval", "did you mean 'resync_interval'? "),
        ("zzzzzz", "legal keys are endpoint, cert_path"),
        ("a\nb" * 100, "legal keys are"),
    ],
)
def test_an_unknown_key_is_an_error_with_a_suggestion(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=r"^f: unknown key ") as caught:
        settings([Layer("f", {name: 1})])
    assert hint in str(caught.value)
    assert str(caught.value).isprintable()


def test_an_illegal_value_in_an_overridden_layer_is_an_error() -> None:
    with pytest.raises(ConfigError, match="low: backend"):
        settings([Layer("low", {"backend": "x"}), Layer("high", {"backend": "nft"})])


# Files.


@pytest.mark.parametrize(
    "text",
    [
        "backend = ",
        "backend = nft",
        "= 5",
        "[",
        "\x00",
        'backend = "nft"\nbackend = "nft"',
        f"resync_interval = {'1' * 5000}",
        f"endpoint = {'[' * 5000}",
        "when = 2026-13-01",
    ],
)
def test_a_file_that_is_not_toml_is_an_error(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^/etc/x\.toml: this is not TOML: "):
        file_layer("/etc/x.toml", text)


def test_a_table_is_an_unknown_key() -> None:
    with pytest.raises(ConfigError, match="unknown key 'docker'"):
        settings([file_layer("f", '[docker]\nendpoint = "tcp://h:1"\n')])


def test_a_file_that_is_not_utf8_is_an_error(etc: Path) -> None:
    (etc / "ipv6natd.toml").write_bytes(b'endpoint = "\xff"\n')
    with pytest.raises(ConfigError, match=r"ipv6natd\.toml: this is not UTF-8$"):
        load(None, {}, {})


def test_without_files_the_defaults_hold(etc: Path) -> None:
    (etc / "conf.d").rmdir()
    assert load(None, {}, {}) == Settings()


def test_files_of_the_directory_win_over_the_file_and_the_last_over_all(etc: Path) -> None:
    (etc / "ipv6natd.toml").write_text("resync_interval = 10\nretry = false\ndebug = true\n")
    (etc / "conf.d" / "20-b.toml").write_text("resync_interval = 30\n")
    (etc / "conf.d" / "10-a.toml").write_text("resync_interval = 20\ndebug = false\n")
    (etc / "conf.d" / "ignored.conf").write_text("no toml at all")
    found = load(None, {}, {})
    assert (found.resync_interval, found.retry, found.debug) == (30, False, False)


def test_environment_wins_over_files_and_flags_over_both(etc: Path) -> None:
    (etc / "ipv6natd.toml").write_text('endpoint = "tcp://file:1"\ncert_path = "/file"\n')
    environ = {"DOCKER_HOST": "tcp://environment:1", "DOCKER_CERT_PATH": "/environment"}
    found = load(None, environ, {"endpoint": "tcp://flag:1"})
    assert (found.endpoint, found.cert_path) == ("tcp://flag:1", "/environment")


def test_an_explicit_file_is_the_only_one(etc: Path) -> None:
    (etc / "ipv6natd.toml").write_text("resync_interval = 10\n")
    (etc / "conf.d" / "a.toml").write_text("debug = true\n")
    (etc / "mine.toml").write_text("cleanup = true\n")
    assert load(etc / "mine.toml", {}, {}) == Settings(cleanup=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [("none.toml", "there is no such file"), ("conf.d", "cannot be read: Is a")],
)
def test_a_missing_explicit_file_is_an_error(etc: Path, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(etc / name, {}, {})
    assert str(etc / name) in str(caught.value)


def test_a_mistake_names_the_file_in_which_it_is(etc: Path) -> None:
    bad = etc / "conf.d" / "50-bad.toml"
    bad.write_text("retry = 1\n")
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {})
    assert str(caught.value) == f"{bad}: retry = 1: must be true or false"


# Environment.


@pytest.mark.parametrize(
    ("environ", "values"),
    [
        ({}, {}),
        ({"DOCKER_HOST": "", "DOCKER_CERT_PATH": "", "DOCKER_TLS_VERIFY": ""}, {}),
        ({"DOCKER_HOST": "tcp://h:1"}, {"endpoint": "tcp://h:1"}),
        ({"DOCKER_CERT_PATH": "/certs"}, {"cert_path": "/certs"}),
        ({"DOCKER_TLS_VERIFY": "1"}, {"tls_verify": True}),
        ({"DOCKER_TLS_VERIFY": "0"}, {"tls_verify": True}),
        ({"DOCKER_TLS_VERIFY": "false"}, {"tls_verify": True}),
        ({"RETRY": "false", "ENDPOINT": "x"}, {}),
    ],
)
def test_the_environment_is_read_as_the_docker_command_reads_it(
    environ: dict[str, str], values: dict[str, Any]
) -> None:
    assert environment_layer(environ).values == values


def test_a_mistake_in_the_environment_names_it() -> None:
    with pytest.raises(ConfigError, match=r"^environment: endpoint = 'nonsense': must be unix:"):
        settings([environment_layer({"DOCKER_HOST": "nonsense"})])


# The shipped file.


def test_the_shipped_file_changes_nothing() -> None:
    assert file_layer("example", example()).values == {}


def test_the_shipped_file_shows_every_key_with_its_default() -> None:
    lines = example().splitlines()
    uncommented = [line[1:] for line in lines if line[:1] == "#" and line[1:2] not in ("", " ")]
    found = tomllib.loads("\n".join(uncommented))
    assert list(found) == list(TABLE)
    assert settings([Layer("example", found)]) == Settings()


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_the_shipped_file_says_what_a_key_is_for_and_what_is_legal(key: config.Key) -> None:
    assert f"# {key.about}\n# Legal: {key.legal}.\n#{key.name} = " in example()


def test_policy_has_the_settings_for_rules() -> None:
    prefixes = (IPv6Network("2001:db8::/32"),)
    found = Settings(nat_prefixes=prefixes, ipv4_any_means_ipv6=True).policy
    assert (found.nat_prefixes, found.ipv4_any_means_ipv6) == (prefixes, True)


def test_every_setting_that_decides_about_rules_reaches_the_policy() -> None:
    values = {
        "nat_prefixes": ["fd00::/8"],
        "ipv4_any_means_ipv6": True,
        "address_map": {"192.0.2.10": "2001:db8::10"},
        "allow_direct_routing": True,
        "accept_fwmark": "0x1/0x3",
    }
    policy = settings([Layer("test", values)]).policy
    for field in fields(Policy):
        assert getattr(policy, field.name) != getattr(Policy(), field.name)


def test_a_byte_order_mark_is_named(etc: Path) -> None:
    (etc / "ipv6natd.toml").write_text("debug = true\n", encoding="utf-8-sig")
    with pytest.raises(ConfigError, match=r"a byte order mark; save it as UTF-8 without one"):
        load(None, {}, {})
