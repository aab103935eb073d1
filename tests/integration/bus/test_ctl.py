"""ipv6natctl as a process, with the service on a private bus."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from ipaddress import IPv6Network
from pathlib import Path
from typing import Any

import pytest

from ipv6natd import __version__
from ipv6natd.ctl.check import _query_daemon
from ipv6natd.ctl.client import DaemonClient, explain_error
from ipv6natd.dbus import connection as bus_connection
from ipv6natd.dbus.connection import BUS, ERROR, BusError, Call
from ipv6natd.dbus.objects import MANAGER, PATH
from ipv6natd.dbus.values import variants
from ipv6natd.dbus.wire import Message, Variant
from ipv6natd.host.findings import Finding, Severity, Topic
from ipv6natd.model import Outcome, Skipped
from ipv6natd.netfilter.docker_rules import Leftover
from ipv6natd.report.explain import Explanation, NetworkReport
from ipv6natd.report.ports import PortReport
from ipv6natd.report.status import State, Status, mapping_row
from tests.harness.needs import need
from tests.integration.bus.conftest import (
    CTL,
    PLAIN_CTL,
    Bus,
    FakeSource,
    client,
    command,
    mapping,
    run,
    serving,
    status,
    warning,
)


def ctl(bus: Bus, source: FakeSource, *words: str) -> tuple[int, str, str]:
    """Exit code, output and error output of `ipv6natctl words` while the source is served."""
    results: list[tuple[int, str, str]] = []

    async def body() -> None:
        async with serving(bus, source):
            results.append(await command(bus, *CTL, *words))

    run(body())
    return results[0]


def test_mappings_prints_a_table_with_legend(bus: Bus) -> None:
    code, out, err = ctl(bus, FakeSource(status(mapping(), mapping(1, "db"))), "mappings")
    assert (code, err) == (0, "")
    assert out == (
        "PROTOCOL HOST      CONTAINER ADDRESS        NETWORK STATE\n"
        "tcp      [::]:8000 web       [fd00:a::2]:80 front   active\n"
        "tcp      [::]:8001 db        [fd00:a::2]:80 front   active\n"
        "\n"
        "2 mappings listed.\n"
    )


def test_no_legend_prints_only_rows(bus: Bus) -> None:
    source = FakeSource(status(mapping()))
    for words in (("--no-legend", "mappings"), ("mappings", "--no-legend")):
        code, out, _ = ctl(bus, source, *words)
        assert (code, out) == (0, "tcp [::]:8000 web [fd00:a::2]:80 front active\n")
    assert ctl(bus, FakeSource(status()), "mappings", "--no-legend") == (0, "", "")
    assert ctl(bus, FakeSource(status()), "mappings") == (0, "0 mappings listed.\n", "")


def test_networks_prints_warnings(bus: Bus) -> None:
    _, out, _ = ctl(bus, FakeSource(status()), "networks", "--no-legend")
    assert out == "front br-0123456789ab nat ipv6natd fd00:a::/64 first; second\n"


def test_skipped_prints_the_reason(bus: Bus) -> None:
    _, out, _ = ctl(bus, FakeSource(status()), "skipped", "--no-legend")
    assert out == "db front 5432/tcp taken by web\n"


def test_rules_prints_the_ruleset_unchanged(bus: Bus) -> None:
    assert ctl(bus, FakeSource(status()), "rules") == (0, "*filter\nCOMMIT\n", "")


def test_resync_prints_rule_counts_and_duration(bus: Bus) -> None:
    answer = ctl(bus, FakeSource(status()), "resync")
    assert answer == (0, "rules added: 3, removed: 1, in 12 ms\n", "")


def test_resync_by_a_plain_user_exits_4_with_the_sudo_command(bus: Bus) -> None:
    need("dbus-daemon")

    async def body() -> None:
        async with serving(bus, FakeSource(status())):
            code, out, err = await command(bus, *PLAIN_CTL, "resync")
            assert (code, out) == (4, "")
            assert err == "not permitted: only root may do that: sudo ipv6natctl resync\n"
            assert (await command(bus, *PLAIN_CTL, "status"))[0] == 0

    run(body())


@pytest.mark.parametrize("why", ["only root may do that: sudo ipv6natctl networks", "no"])
def test_access_denied_message_has_sudo_and_the_typed_command(why: str) -> None:
    result = explain_error(BusError(f"{ERROR}AccessDenied", why), "ipv6natctl explain 'a b'")
    assert result == (4, f"not permitted: {why.split(':')[0]}: sudo ipv6natctl explain 'a b'")


@pytest.mark.parametrize("state", State)
def test_status_exits_0_only_when_synced(bus: Bus, state: State) -> None:
    code, out, err = ctl(bus, FakeSource(status(state=state, state_reason="why")))
    assert (code, err) == (0 if state is State.SYNCED else 1, "")
    assert f"    State: {state} (why)\n" in out
    assert " ipv6natd: 1.2.3\n" in out
    assert "  Skipped: 1 (ipv6natctl skipped)\n" in out


@pytest.mark.parametrize("words", [("--json=short",), ("--json", "short"), ("-j",), ("--json",)])
def test_json_without_a_terminal_is_one_line(bus: Bus, words: tuple[str, ...]) -> None:
    code, out, _ = ctl(bus, FakeSource(status(mapping())), *words, "mappings")
    assert code == 0
    assert out.count("\n") == 1
    (row,) = json.loads(out)
    assert (row["ContainerName"], row["HostPort"], row["Since"]) == ("web", 8000, 0)


@pytest.mark.parametrize(
    ("what", "kind"),
    [
        ("status", dict),
        ("networks", list),
        ("skipped", list),
        ("findings", list),
        ("resync", dict),
        ("rules", str),
    ],
)
def test_every_command_prints_json(bus: Bus, what: str, kind: type[Any]) -> None:
    _, out, _ = ctl(bus, FakeSource(status()), what, "--json=pretty")
    assert isinstance(json.loads(out), kind)
    assert ctl(bus, FakeSource(status()), what, "--json=off")[1] != out


def test_control_characters_in_a_name_are_escaped(bus: Bus) -> None:
    source = FakeSource(status(mapping(name="\x1b[2J\nfake row\u202e")))
    for words in (("mappings",), ("mappings", "--json=pretty"), ("mappings", "-j")):
        _, out, _ = ctl(bus, source, *words)
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert "\nfake" not in out


def test_stopped_daemon_exits_3_with_the_start_command(bus: Bus) -> None:
    async def body() -> None:
        for what in ("status", "mappings", "resync"):
            assert await command(bus, *CTL, what) == (
                3,
                "",
                "ipv6natd is not running: systemctl start ipv6natd\n",
            )

    run(body())


@pytest.mark.parametrize(
    ("state", "text"), [("failed", "a.toml: unknown key 'debg'"), ("inactive", "x"), ("failed", "")]
)
def test_failed_unit_is_named_with_its_reason(bus: Bus, state: str, text: str) -> None:
    """Q27. Another process answers as systemd."""

    def answer(call: Call) -> None:
        interface = call.args[0].rpartition(".")[2]
        found = {"Unit": {"ActiveState": state}, "Service": {"StatusText": text}}[interface]
        found = {name: Variant("s", value) for name, value in found.items()}
        call.connection.reply(call, "a{sv}", [found])

    async def body() -> None:
        systemd = await bus_connection.connect(bus.address, on_call=answer)
        await systemd.call(*BUS, "RequestName", "su", "org.freedesktop.systemd1", 4)
        code, out, err = await command(bus, *CTL, "status")
        assert (code, out) == (3, "")
        if state == "failed" and text:
            assert err == (
                f"ipv6natd has failed: {text}; correct this, then: systemctl start ipv6natd\n"
            )
        else:
            assert err == "ipv6natd is not running: systemctl start ipv6natd\n"
        _, out, _ = await command(bus, *CTL, "check")
        assert (f"it has failed: {text}; correct this" in out) == (state == "failed" and text != "")
        systemd.close()

    run(body())


def test_missing_bus_exits_1_with_message(bus: Bus) -> None:
    bus.stop()

    async def body() -> None:
        code, out, err = await command(bus, *CTL)
        assert (code, out) == (1, "")
        assert err.startswith("cannot reach the system bus at unix:path=")
        assert err.endswith(": systemctl status dbus.socket\n")
        assert err.count("\n") == 1

    run(body())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("mapings", "'mapings' is not a command; did you mean 'mappings'?"),
        ("xyzzy", "'xyzzy' is not a command: one of status, mappings"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
        ("--json=xml", "invalid choice: 'xml'"),
        ("status extra", "status takes no argument: 'extra'"),
        ("rules --port 80", "--port goes with mappings, not with rules"),
        ("mappings --port 0", "'0' is not a port: a number from 1 to 65535"),
        ("mappings --port ٨٠", "is not a port"),
        ("mappings --protocol icmp", "'icmp' is not one of tcp, udp, sctp"),
        ("mappings --container=", "a name is missing"),
        ("status --leftovers", "--leftovers goes with cleanup, not with status"),
        ("cleanup --dry-run", "--dry-run goes with cleanup --leftovers"),
        ("mappings --cont web", "unrecognized arguments: --cont"),
    ],
)
def test_wrong_usage_exits_2_with_one_line(words: str, text: str) -> None:
    done = subprocess.run((*CTL, *words.split()), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert text in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "ports"),
    [
        ("--container web", {8000, 8002}),
        ("--container w*", {8000, 8002}),
        (f"--container {1:064x}", {8001}),
        (f"--container {1:064x} --network front --protocol tcp", {8001}),
        ("--port 8002", {8002}),
        ("--network f?ont --port 8001", {8001}),
    ],
)
def test_mappings_filters_select_matching_rows(bus: Bus, words: str, ports: set[int]) -> None:
    source = FakeSource(status(mapping(), mapping(1, "db"), mapping(2)))
    code, out, _ = ctl(bus, source, "mappings", "--json=short", *words.split())
    assert code == 0
    assert {row["HostPort"] for row in json.loads(out)} == ports


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            "mappings --container wbe",
            "no mapping matches --container wbe; did you mean 'web'?",
        ),
        ("mappings --port 9", "no mapping matches --port 9: see ipv6natctl skipped"),
        ("networks --network frunt", "no network matches --network frunt; did you mean 'front'?"),
        ("skipped --container web", "no row matches --container web: see ipv6natctl"),
    ],
)
def test_filter_without_match_exits_1_with_message(bus: Bus, words: str, text: str) -> None:
    answer = ctl(bus, FakeSource(status(mapping())), *words.split())
    assert answer == (1, "", f"{text}\n")


def test_status_prints_at_most_five_network_warnings(bus: Bus) -> None:
    _, out, _ = ctl(bus, FakeSource(status()))
    assert out.endswith("Warnings: front: first\n           front: second\n")
    many = tuple(warning(str(number)) for number in range(9))
    _, out, _ = ctl(bus, FakeSource(status(findings=many)))
    assert out.endswith("front: 4\n           and 4 more: ipv6natctl findings\n")
    assert "front: 5" not in out
    assert "Findings: 9 warnings (ipv6natctl findings)\n" in out


OFF = Finding(topic=Topic.FORWARDING, problem="it is off; now", command="sysctl -w a=1")
FILTER = Finding(topic=Topic.FIREWALL, severity=Severity.NOTE, problem="a filter is there")


def test_findings_are_a_table_and_an_error_exits_1(bus: Bus) -> None:
    found = (OFF, warning("no effect"), FILTER)
    code, out, err = ctl(bus, FakeSource(status(findings=found)), "findings")
    assert (code, err) == (1, "")
    assert out == (
        "SEVERITY ABOUT      NETWORK WHAT\n"
        "error    forwarding -       it is off; now: sysctl -w a=1\n"
        "warning  network    front   no effect\n"
        "note     firewall   -       a filter is there\n"
        "\n"
        "3 findings listed.\n"
    )
    code, out, _ = ctl(bus, FakeSource(status(findings=found)), "findings", "--json=short")
    assert code == 1
    assert json.loads(out)[0] == {
        "About": "forwarding",
        "Severity": "error",
        "Text": "it is off; now",
        "Command": "sysctl -w a=1",
        "Network": "",
    }
    assert ctl(bus, FakeSource(status(findings=found[1:])), "findings")[0] == 0
    assert ctl(bus, FakeSource(status(findings=())), "findings") == (0, "0 findings listed.\n", "")
    words = ("findings", "--network", "fr*", "--no-legend")
    only = ctl(bus, FakeSource(status(findings=found)), *words)
    assert only == (0, "warning network front no effect\n", "")


def on_terminal(bus: Bus, source: FakeSource, *words: str, **environ: str) -> str:
    """The output on a terminal of 60 columns."""
    env = [f"{name}={value}" for name, value in ({"TERM": "xterm"} | environ).items()]
    line = shlex.join(("env", "COLUMNS=60", *env, *CTL, *words))
    results: list[str] = []

    async def body() -> None:
        async with serving(bus, source):
            _, out, _ = await command(bus, "script", "-qec", line, "/dev/null")
            results.append(out.replace("\r\n", "\n"))

    run(body())
    return results[0]


def test_output_has_colour_only_on_a_terminal_without_no_color(bus: Bus) -> None:
    need("script")
    source = FakeSource(status(mapping()))
    assert "State: \x1b[32msynced\x1b[0m\n" in on_terminal(bus, source)
    assert on_terminal(bus, source, "mappings").startswith("\x1b[4mPROTOCOL HOST")
    assert "\x1b" not in on_terminal(bus, source, NO_COLOR="1")
    assert "\x1b" not in on_terminal(bus, source, TERM="dumb")
    assert "\x1b" in on_terminal(bus, source, NO_COLOR="")
    assert "\x1b" not in ctl(bus, source)[1]


def test_long_reason_wraps_on_a_terminal_and_not_in_a_pipe(bus: Bus) -> None:
    need("script")
    reason = "word " * 30 + "end"
    long = Skipped(container_name="db", network="front", port="5432/tcp", reason=reason)
    source = FakeSource(status(skipped=(long,)))
    shown = on_terminal(bus, source, "skipped", "--no-legend")
    assert max(len(line) for line in shown.splitlines()) <= 60
    assert " ".join(shown.split()) == f"db front 5432/tcp {reason}"
    assert ctl(bus, source, "skipped", "--no-legend")[1] == f"db front 5432/tcp {reason}\n"


def explained(name: str = "web") -> Explanation:
    used = NetworkReport(
        name="front", bridge="br-a", address="fd00:a::2", used=True, reason="it is the only one"
    )
    forwarded = PortReport(
        binding="[::]:8080 -> 80/tcp",
        outcome=Outcome.FORWARDED,
        rule="-A IPV6NAT-DNAT -j DNAT",
        connections=7,
        container_address="::1",  # nobody listens there
        container_port=1,
    )
    not_forwarded = PortReport(
        binding="127.0.0.1:81 -> 81/tcp",
        outcome=Outcome.IPV4_ONLY,
        reason="it is bound to 127.0.0.1",
    )
    return Explanation(
        container_id="6f1c" * 16,
        container_name=name,
        networks=(used, replace(used, name="back", used=False, reason="internal")),
        ports=(forwarded, not_forwarded),
        skipped=(),
        loopback="nobody answers",
    )


def test_explain_prints_network_ports_rule_counter_and_loopback(bus: Bus) -> None:
    source = FakeSource(status())
    source.explained = [explained()]
    assert ctl(bus, source, "explain", "web") == (
        0,
        " Container: web (6f1c6f1c6f1c)\n"
        "Reached by: front (br-a) at fd00:a::2; it is the only one\n"
        "    Not by: back: internal\n"
        "  On [::1]: nobody answers\n"
        "\n"
        "PORT                   OUTCOME   CONNECTIONS SERVER  WHY\n"
        "[::]:8080 -> 80/tcp    forwarded 7           refused -A IPV6NAT-DNAT -j DNAT\n"
        "127.0.0.1:81 -> 81/tcp ipv4-only -           -       it is bound to 127.0.0.1\n"
        "\n"
        "[::]:8080 -> 80/tcp: no program in the container listens on its IPv6 address; let the "
        "server listen on [::], not only on 0.0.0.0\n",
        "",
    )
    _, out, _ = ctl(bus, source, "explain", "web", "--json=short")
    assert json.loads(out)[0]["Networks"][1] == {
        "Name": "back",
        "Bridge": "br-a",
        "Address": "fd00:a::2",
        "Used": False,
        "Reason": "internal",
    }


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("wbe", "no running container is called 'wbe'; did you mean 'web'?"),
        ("xyzzy", "no running container is called 'xyzzy': docker ps"),
        ("99", "no running container publishes port 99, for IPv4 or IPv6: docker ps"),
        ("99/udp", "no running container publishes port 99/udp, for IPv4 or IPv6: docker ps"),
    ],
)
def test_explain_unknown_query_exits_1_with_message(bus: Bus, query: str, text: str) -> None:
    answer = ctl(bus, FakeSource(status(mapping())), "explain", query)
    assert answer == (1, "", f"{text}\n")


def test_explain_without_argument_exits_2() -> None:
    done = subprocess.run((*CTL, "explain"), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "explain needs an argument: CONTAINER|PORT" in done.stderr


@pytest.mark.parametrize(("what", "done"), [("reload", "in force"), ("cleanup", "removed")])
def test_reload_and_cleanup_call_the_daemon(bus: Bus, what: str, done: str) -> None:
    source = FakeSource(status())
    code, out, err = ctl(bus, source, what)
    assert (code, err, source.done) == (0, "", [what])
    assert done in out


def test_cleanup_leftovers_lists_with_dry_run_and_removes_without_it(bus: Bus) -> None:
    source = FakeSource(status())
    source.left = (
        Leftover(variant="nft", table="nat", chain="PREROUTING", rule="-j DOCKER"),
        Leftover(variant="nft", table="nat", chain="DOCKER"),
    )
    rows = (
        "VARIANT TABLE CHAIN      RULE\n"
        "nft     nat   PREROUTING -j DOCKER\n"
        "nft     nat   DOCKER     -\n"
    )
    shown = ctl(bus, source, "cleanup", "--leftovers", "--dry-run")
    assert shown == (
        0,
        f"{rows}\n2 chains and rules would be removed by: ipv6natctl cleanup --leftovers\n",
        "",
    )
    assert source.done == []
    removed = ctl(bus, source, "cleanup", "--leftovers")
    assert removed == (0, f"{rows}\n2 chains and rules removed.\n", "")
    assert source.done == ["remove_leftovers"]
    again = ctl(bus, source, "cleanup", "--leftovers")
    assert again == (0, "no leftovers found\n", "")


def test_cleanup_without_a_daemon_by_a_plain_user_exits_4_with_message(bus: Bus) -> None:
    async def body() -> None:
        code, out, err = await command(bus, *PLAIN_CTL, "cleanup")
        assert (code, out) == (4, "")
        assert err.endswith("only root can write rules: sudo ipv6natctl cleanup\n")

    run(body())


@contextlib.asynccontextmanager
async def monitor(bus: Bus, *words: str) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """`ipv6natctl monitor`, as a function that reads the next line."""
    process = await asyncio.create_subprocess_exec(
        *(*CTL, "monitor", *words),
        stdout=subprocess.PIPE,
        env={**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": bus.address},
    )
    stdout = process.stdout
    assert stdout is not None

    async def line() -> str:
        return (await stdout.readline()).decode().rstrip("\n")

    try:
        yield line
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def test_monitor_prints_mapping_state_and_daemon_changes(bus: Bus) -> None:
    empty, full = status(), status(mapping(), generation=2)
    degraded = replace(full, state=State.DEGRADED, state_reason="why")
    changes: list[tuple[Status, Status, tuple[str, ...], str]] = [
        (empty, full, (), "added    tcp [::]:8000 -> web [fd00:a::2]:80 (front)"),
        (
            full,
            replace(empty, generation=3),
            (),
            "removed  tcp [::]:8000 -> web [fd00:a::2]:80 (front)",
        ),
        (full, degraded, (), "changed  degraded; why"),
        (
            degraded,
            degraded,
            ("nat",),
            "repaired nat: another program had changed our rules",
        ),
    ]

    async def body() -> None:
        async with monitor(bus) as line:
            assert (await line()).partition(" ")[2] == "stopped  ipv6natd"
            async with serving(bus, FakeSource(empty)) as service:
                assert (await line()).partition(" ")[2] == "started  ipv6natd"
                for old, new, drift, text in changes:
                    service.publish(old, new, drift)
                    assert (await line()).partition(" ")[2] == text
            assert (await line()).partition(" ")[2] == "stopped  ipv6natd"

    run(body())


def test_monitor_starts_with_the_state_and_counts_unsignalled_mappings(bus: Bus) -> None:
    many = status(*map(mapping, range(60)), generation=2, last_sync=1)

    async def body() -> None:
        async with serving(bus, FakeSource(status())) as service:
            async with monitor(bus, "--json=short") as line:
                now = json.loads(await line())
                assert (now["Event"], now["State"], now["MappingCount"]) == ("now", "synced", 0)
                service.publish(status(), many)
                events = [json.loads(await line()) for _ in range(51)]
            assert [event["Event"] for event in events] == ["added"] * 50 + ["more"]
            assert (events[-1]["Added"], events[-1]["Removed"]) == (10, 0)
            assert events[0]["Mapping"]["HostPort"] == 8000

    run(body())


def test_monitor_ignores_signals_of_other_senders(bus: Bus) -> None:
    async def body() -> None:
        async with (
            serving(bus, FakeSource(status())) as service,
            client(bus) as other,
            monitor(bus) as line,
        ):
            assert " now " in await line()
            # Addressed to each connection: the policy denies only a broadcast.
            row = variants(mapping_row(mapping(name="forged"), {}))
            (names,) = await other.call(*BUS, "ListNames")
            for name in names:
                forged = Message.new_signal(PATH, MANAGER, "MappingAdded", "a{sv}", [row])
                forged.destination = name
                other._bus.send(forged)
            await other.flush(5)
            service.publish(status(), status(mapping(), generation=2))
            assert " -> web " in await line()

    run(body())


def test_monitor_ends_when_the_bus_stops(bus: Bus) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())), monitor(bus) as line:
            assert " now " in await line()
            bus.stop()
            assert await line() == ""

    run(body())


def test_check_by_a_plain_user_shows_the_findings_of_the_daemon(bus: Bus) -> None:
    if not all(folder.stat().st_mode & 1 for folder in Path(sys.executable).resolve().parents):
        pytest.skip("this Python is for root alone: a plain user cannot load what it loads late")

    async def body() -> None:
        async with serving(bus, FakeSource(status(findings=(OFF, FILTER)))):
            code, out, err = await command(bus, *PLAIN_CTL, "check", "--json=short")
            lines = {line["About"]: line for line in json.loads(out)}
            assert err == ""
            assert lines["ipv6natd"]["Verdict"] == "ok"
            assert lines["docker"]["Text"] == "engine 20.10.24; it writes no IPv6 rules itself"
            assert lines["docker-ipv6nat"]["Verdict"] == "ok"
            off = {"About": "forwarding", "Verdict": "bad", "Text": OFF.problem, "Fix": OFF.command}
            assert lines["forwarding"] == off
            assert lines["firewall"]["Verdict"] == "note"
            assert code == 1
            _, out, _ = await command(bus, *PLAIN_CTL, "check")
            assert "fault found.\n" in out
        code, out, _ = await command(bus, *CTL, "check")
        assert code == 1
        assert "it is not running: systemctl enable --now ipv6natd\n" in out

    run(body())


def test_check_reports_no_error_when_access_is_denied() -> None:
    class Refusing(DaemonClient):
        async def properties(self) -> dict[str, Any]:
            return {"State": "synced"}

        async def call(self, *_args: Any, **_options: Any) -> Any:
            raise BusError(f"{ERROR}AccessDenied", "only root may do that")

    assert asyncio.run(_query_daemon(Refusing())) == ({"State": "synced"}, None, "")


def test_metrics_match_the_status(bus: Bus) -> None:
    now = status(mapping())
    code, out, err = ctl(bus, FakeSource(now), "metrics")
    assert (code, err) == (0, "")
    assert 'ipv6natd_state{state="synced"} 1\n' in out
    assert "ipv6natd_last_sync_timestamp_seconds 1700000000\n" in out
    code, out, _ = ctl(bus, FakeSource(now), "metrics", "--json=short")
    assert {"Name": "ipv6natd_skipped", "Labels": {}, "Value": 1} in json.loads(out)
    assert {type(sample["Value"]) for sample in json.loads(out)} <= {int, float}


def test_metrics_of_a_stopped_daemon_exit_3_with_ipv6natd_up_0(bus: Bus) -> None:
    async def body() -> None:
        code, out, err = await command(bus, *CTL, "metrics")
        assert (code, err) == (3, "ipv6natd is not running: systemctl start ipv6natd\n")
        assert out.splitlines()[-1] == "ipv6natd_up 0"

    run(body())


def test_ula_prints_a_random_prefix_and_docker_settings() -> None:
    def made(*words: str) -> str:
        return subprocess.run(
            (*CTL, "ula", *words), capture_output=True, text=True, check=True
        ).stdout

    value = json.loads(made("-j"))
    prefix = IPv6Network(value["Prefix"])
    assert (prefix.prefixlen, prefix.subnet_of(IPv6Network("fd00::/8"))) == (48, True)
    used = [value["DaemonJson"]["fixed-cidr-v6"], *value["Subnets"]]
    assert len({IPv6Network(subnet) for subnet in used}) == 4
    assert all(IPv6Network(subnet).subnet_of(prefix) for subnet in used)
    text = made()
    assert text.splitlines()[0] != value["Prefix"]
    for word in ("/etc/docker/daemon.json", '"fixed-cidr-v6": "fd', "docker network create --ipv6"):
        assert word in text


def test_help_lists_commands_and_examples_and_version_is_one_line() -> None:
    shown = subprocess.run((*CTL, "--help"), capture_output=True, text=True, check=True).stdout
    for word in ("status", "mappings", "networks", "skipped", "resync", "rules", "examples:"):
        assert word in shown
    assert max(len(line) for line in shown.splitlines()) <= 100
    shown = subprocess.run((*CTL, "--version"), capture_output=True, text=True, check=True).stdout
    assert shown == f"ipv6natctl {__version__}\n"


def test_locale_without_unicode_escapes_names(bus: Bus) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status(mapping(name="käse")))):
            plain = ("env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0")
            code, out, err = await command(bus, *plain, *CTL, "mappings", "--no-legend")
            assert (code, err) == (0, "")
            assert "k\\xe4se" in out

    run(body())


def test_closed_output_pipe_is_no_error(bus: Bus) -> None:
    async def body() -> None:
        many = status(*(mapping(number) for number in range(3000)))
        async with serving(bus, FakeSource(many)):
            words = " ".join(f"'{word}'" for word in CTL)
            code, out, err = await command(bus, "sh", "-c", f"{words} mappings | head -n1")
            assert (code, out.split()[0], err) == (0, "PROTOCOL", "")

    run(body())


@pytest.mark.parametrize("word", ["rules", "--help", "--version"])
def test_full_disk_exits_1_with_one_line(bus: Bus, word: str) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status())):
            words = shlex.join((*CTL, word))
            answer = await command(bus, "sh", "-c", f"{words} >/dev/full")
            assert answer == (
                1,
                "",
                "cannot write the output: No space left on device\n",
            )

    run(body())


def test_dbus_folder_has_no_activation_file() -> None:
    assert not any(name.endswith(".service") for name in os.listdir("dbus"))  # noqa: PTH208


def test_report_has_lists_rules_and_facts_and_less_without_the_daemon(bus: Bus) -> None:
    source = FakeSource(status(mapping(), mapping(1, "shop")))
    code, out, err = ctl(bus, source, "report")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert [row["ContainerName"] for row in report["Mappings"]] == ["container4", "container3"]
    assert report["Networks"][0]["Name"] == "network2"
    assert report["Rules"] == "*filter\nCOMMIT\n"
    assert report["Facts"] == {"snapshot": {}, "policy": {}}
    assert "shop" not in out
    _, out, err = ctl(bus, source, "report", "--unchanged")
    assert "shop" in out
    assert err.startswith("this report has the names of containers and networks")

    async def body() -> None:
        code, out, err = await command(bus, *CTL, "report")
        assert (code, err) == (0, "ipv6natd is not running: the report has less\n")
        assert {"Format", "Versions", "Tables", "Journal"} == set(json.loads(out))

    run(body())


def test_explain_from_an_address_follows_a_packet_and_exits_1_if_it_ends(bus: Bus) -> None:
    source = FakeSource(status())
    code, out, err = ctl(bus, source, "explain", "8080", "--from", "2001:DB8::0:2")
    assert (code, err) == (1, "")
    assert out == (
        "A tcp packet from 2001:db8::2 to [2001:db8::1]:8080 comes in by eth0; it is dropped by "
        "other: -t filter -A FORWARD -j DROP.\n"
        "\n"
        "HOOK    TABLE  BY    VERDICT RULE\n"
        "FORWARD filter other DROP    -A FORWARD -j DROP\n"
    )
    _, out, _ = ctl(bus, source, "explain", "8080", "--from", "2001:db8::2", "--json=short")
    (row,) = json.loads(out)
    assert row["Steps"][0]["By"] == "other"
    done = subprocess.run(
        (*CTL, "explain", "8080", "--from", "192.0.2.1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "'192.0.2.1' is not an IPv6 address" in done.stderr
