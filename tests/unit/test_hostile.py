"""Hostile names, labels and options, checked in every output.

The outputs and their limits are in tests/harness/outputs.py. Here are the texts, and the places
where an engine, a container or the host can put them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from ipaddress import IPv6Network
from typing import Any

import pytest

from ipv6natd.ctl.check import _result
from ipv6natd.ctl.client import Options, explain_error, json_text
from ipv6natd.ctl.show import _filtered_table, _mapping_cells
from ipv6natd.dbus.connection import BusError
from ipv6natd.dbus.values import bus_text
from ipv6natd.engine import parse as docker_facts
from ipv6natd.firewall.backend import FirewallError
from ipv6natd.host.findings import Finding, HostFacts, RaDefaultRoute, Topic, evaluate
from ipv6natd.host.nft import BaseChain
from ipv6natd.model import Engine, Policy
from ipv6natd.report.checks import Check, CheckInputs, checks
from ipv6natd.system.messages import MessageId, log_fields
from ipv6natd.system.sd_notify import MAX_STATUS_BYTES, _status
from ipv6natd.system.terminal import printable
from tests.harness.build import network
from tests.harness.every import every
from tests.harness.fake_engine import raw_container, raw_network, row
from tests.harness.outputs import (
    assert_every_output_is_safe,
    assert_printable,
    close_all,
    logged,
    over_the_bus,
)
from tests.unit.policy.test_properties import assert_harmless

TEXTS = {
    "escape sequences": "\x1b[2J\x1b[31mred\x1b]0;title\x07",
    "one-byte escapes": "\x9b31m\x9d0;title\x9c",
    "cursor and bell": "a\r\b\a\t\v\fb",
    "lines": "web\npublished [::]:22/tcp -> root\r\nPRIORITY=0\n\n",
    "other ends of lines": "a\u2028b\u2029c\x85d\x1ce",
    "NUL": "a\0b",
    "a rule": "web -j ACCEPT",
    "a rule on its own line": "x\n-A FORWARD -j ACCEPT\nCOMMIT\n",
    "quotes": "\"'`\\",
    "a command": "$(touch /tmp/owned)`id`;reboot|cat&&exit",
    "variables": "${IFS}%s%n{0}{name}%(x)s$HOME",
    "options": "--help",
    "a path": "../../../etc/passwd",
    "right to left": "\u202egpj.exe\u202c\u200f\u2066x\u2069",
    "invisible": "a\u200b\u00ad\ufeff\u2060b\u034f",
    "a lone surrogate": "a\ud800b\udfff",
    "stacked marks": "a" + "\u0301" * 200,
    "wide": "容器" * 60,
    "emoji": "👩\u200d👩\u200d👧\u200d👦🏴\U000e0067",
    "a field of the journal": "web\nMESSAGE=all is well\nPRIORITY=7",
    "a length of the journal": "MESSAGE\n\x08\x00\x00\x00\x00\x00\x00\x00AAAAAAAA\n",
    "a label of Prometheus": 'x"} 1\nipv6natd_up{a="',
    "of no kind": "\ue000\uffff\U0010ffff\U000f0000",
    "markup": "<script>&amp;</script>",
    "a specifier of systemd": "%i%n\\x41 READY=1",
    "long": "x" * 65_536,
    "long and wide": "\u202e" * 65_536,
    "empty": "",
    "blanks": "   ",
    "a plus": "br+",
    "digits of others": "٣٤/tcp",
}
TEXT = every("text", TEXTS)
PREFIX = "com.docker.network."
OPTIONS = (
    f"{PREFIX}bridge.name",
    f"{PREFIX}bridge.enable_icc",
    f"{PREFIX}bridge.enable_ip_masquerade",
    f"{PREFIX}bridge.host_binding_ipv4",
    f"{PREFIX}bridge.host_binding_ipv6",
    f"{PREFIX}bridge.gateway_mode_ipv6",
    f"{PREFIX}bridge.trusted_host_interfaces",
    f"{PREFIX}host_ipv6",
)
NORMAL = (raw_network("x"), raw_container("web"))
Facts = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    yield
    close_all()


def container_name(text: str) -> Facts:
    return raw_network("x"), raw_container("web", Name=text)


def network_name(text: str) -> Facts:
    net = raw_network("x", Name=text)
    return net, raw_container("web")


def everything(text: str) -> Facts:
    # No name but docker_gwbridge has an effect, so both may be the same text.
    options = dict.fromkeys(OPTIONS[1:], text) | {text: text}
    net = raw_network("x", Name=text, Options=options, Labels={text: text}, Driver="bridge")
    return net, raw_container("web", Name=f"/{text}", Config={"Labels": {text: text}})


def port(text: str) -> Facts:
    web = raw_container("web")
    bound = web["NetworkSettings"]["Ports"]
    bound[text] = [{"HostIp": "::", "HostPort": "1"}]
    bound["81/tcp"] = [{"HostIp": text, "HostPort": "81"}, {"HostIp": "::", "HostPort": text}]
    return raw_network("x"), web


def address(text: str) -> Facts:
    web = raw_container("web", address=text)
    net = raw_network("x", IPAM={"Config": [{"Subnet": f"fd00:a::/64{text}"}, {"Subnet": text}]})
    return net, web


def option(key: str) -> Callable[[str], Facts]:
    return lambda text: (raw_network("x", Options={key: text}), raw_container("web"))


PLACES: dict[str, Callable[[str], Facts]] = {
    "container name": container_name,
    "network name": network_name,
    "everything": everything,
    "port": port,
    "address": address,
    **{key.removeprefix(PREFIX): option(key) for key in OPTIONS},
}


@pytest.mark.parametrize("place", PLACES)
@TEXT
def test_every_output_is_safe_for_any_text_in_any_place(text: str, place: str) -> None:
    net, web = PLACES[place](text)
    engine = docker_facts.engine({"Version": text, "ApiVersion": text}, {"SecurityOptions": [text]})
    facts, want = assert_harmless([[net], [web]], engine, any_means_ipv6=False, proxy=False)
    assert_every_output_is_safe(facts, want, reason=text[:300])


@TEXT
def test_every_output_is_safe_for_any_name_in_the_list(text: str) -> None:
    listed = row(raw_container("web", Name=text))
    engine = Engine(version="28.0.0")
    facts, want = assert_harmless([[raw_network("x")], [listed]], engine, any_means_ipv6=True,
                                  proxy=True)  # fmt: skip
    assert_every_output_is_safe(facts, want)


@every("place", ["container name", "network name", "everything"])
@TEXT
def test_a_name_changes_no_rule(text: str, place: str) -> None:
    """The rules are the same for any name of container and network."""
    from ipv6natd.netfilter.render import format_ruleset
    from ipv6natd.policy.ruleset import ruleset

    engine = Engine(version="28.0.0")
    rules = []
    for net, web in (NORMAL, PLACES[place](text)):
        _, want = assert_harmless([[net], [web]], engine, any_means_ipv6=False, proxy=False)
        assert [(mapping.host_port, mapping.container_port) for mapping in want.mappings] == [
            (8080, 80)
        ]
        rules.append(format_ruleset(ruleset(want)))
    assert rules[0] == rules[1]


@TEXT
def test_check_is_safe_for_any_name_on_the_host(text: str) -> None:
    facts = HostFacts(
        ra_default_routes=(RaDefaultRoute(interface=text, accept_ra=1, forwarding=True),),
        client_interfaces=(text, "eth0"),
        interfaces=(text, "eth0"),
        forward_rules=(f"-A FORWARD {text}",),
        nft_chains=(
            BaseChain(family="inet", table=text, name=text, hook="forward", policy="drop"),
        ),
        docker_ipv6nat=f"kill {text}",
        zones={text: text},
    )
    nets = (network(), network(name="y", subnet="fd00:b::/64", icc=False))
    inputs = CheckInputs(
        bus="",
        daemon={
            "State": "degraded",
            "StateReason": text,
            "DockerConnected": True,
            "EngineVersion": text,
            "Backend": text,
            "NetworkCount": 0,
        },
        host_backend=text,
        kernel_fault=Finding(problem=text, command=text),
    )
    findings = (
        *evaluate(facts, nets),
        *(Finding(topic=topic, problem=text, command=text, network=text) for topic in Topic),
    )
    results = checks(facts, findings, inputs)
    for options in (Options(), Options(json="short")):
        answer = _result(results, options)
        assert_printable(answer.text)
        assert len(answer.text.splitlines()) == len(results) + 3
        assert json.loads(json_text(answer.value, "short")) == json.loads(json.dumps(answer.value))


@TEXT
def test_check_prints_safe_lines_for_any_text(text: str) -> None:
    answer = _result([Check(about="a", verdict="ok", text=text, fix=text)], Options())  # type: ignore[arg-type]
    assert_printable(answer.text)


@TEXT
def test_journal_is_safe_for_any_text_of_tools_and_engine(text: str) -> None:
    from logging import getLogger

    log, text = getLogger("ipv6natd.test"), text[:5000]  # more than a datagram holds goes to stderr

    def act() -> None:
        log.warning("lost: %s", text, extra=log_fields(MessageId.ENGINE_LOST, reason=text))
        log.error("%s", FirewallError(text))

    entries, lines = logged(act)
    assert len(entries) == 2
    for entry in entries:
        assert set(entry) <= {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE_ID",
                              "IPV6NATD_REASON"}  # fmt: skip
        assert_printable(entry["MESSAGE"])
    assert entries[0]["MESSAGE"].isprintable()
    for line in lines:
        assert_printable(line)


@TEXT
def test_a_status_line_is_one_short_line(text: str) -> None:
    word = _status(text)
    assert word.startswith("STATUS=")
    assert word.isprintable()
    assert len(word.encode()) <= MAX_STATUS_BYTES + len("STATUS=")


@TEXT
def test_an_error_of_the_bus_is_a_sentence(text: str) -> None:
    assert "\0" not in bus_text(text)
    bus_text(text).encode()
    code, note = explain_error(BusError("org.freedesktop.DBus.Error.Failed", text), f"cmd {text}")
    assert code
    assert_printable(printable(note))


@TEXT
def test_filter_without_a_match_gives_a_safe_message(text: str) -> None:
    options = Options(filters={"container": text or "x"})
    answer = _filtered_table(options, "mapping", _mapping_cells, [])
    assert_printable(printable(answer.note))


@TEXT
def test_bus_returns_the_text_that_was_sent(text: str) -> None:
    from ipv6natd.dbus.values import marshal_text

    (back,) = over_the_bus("s", marshal_text(text))
    assert back == bus_text(text)


def test_the_default_policy_is_the_one_that_is_tested() -> None:
    assert Policy().nat_prefixes == (IPv6Network("fc00::/7"),)
