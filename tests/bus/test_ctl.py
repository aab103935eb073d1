"""ipv6natctl as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

import pytest

from ipv6natd import __version__
from ipv6natd.status import State
from ipv6natd.tables import printable, table, width
from tests.bus.conftest import (
    CTL,
    PLAIN_CTL,
    Bus,
    FakeSource,
    command,
    mapping,
    run,
    serving,
    status,
)
from tests.lab.needs import need


def ctl(bus: Bus, source: FakeSource, *words: str) -> tuple[int, str, str]:
    """Exit code, output and errors of `ipv6natctl words` while the source is served."""
    results: list[tuple[int, str, str]] = []

    async def body() -> None:
        async with serving(bus, source):
            results.append(await command(bus, *CTL, *words))

    run(body())
    return results[0]


def test_mappings_are_a_table_without_borders(bus: Bus) -> None:
    code, out, err = ctl(bus, FakeSource(status(mapping(), mapping(1, "db"))), "mappings")
    assert (code, err) == (0, "")
    assert out == (
        "PROTOCOL HOST      CONTAINER ADDRESS        NETWORK STATE\n"
        "tcp      [::]:8000 web       [fd00:a::2]:80 front   active\n"
        "tcp      [::]:8001 db        [fd00:a::2]:80 front   active\n"
        "\n"
        "2 mappings listed.\n"
    )


def test_without_legend_only_rows_are_left(bus: Bus) -> None:
    source = FakeSource(status(mapping()))
    for words in (("--no-legend", "mappings"), ("mappings", "--no-legend")):
        code, out, _ = ctl(bus, source, *words)
        assert (code, out) == (0, "tcp [::]:8000 web [fd00:a::2]:80 front active\n")
    assert ctl(bus, FakeSource(status()), "mappings", "--no-legend") == (0, "", "")
    assert ctl(bus, FakeSource(status()), "mappings") == (0, "0 mappings listed.\n", "")


def test_networks_show_their_warnings(bus: Bus) -> None:
    _, out, _ = ctl(bus, FakeSource(status()), "networks", "--no-legend")
    assert out == "front br-0123456789ab nat ipv6natd fd00:a::/64 first; second\n"


def test_skipped_shows_the_reason(bus: Bus) -> None:
    _, out, _ = ctl(bus, FakeSource(status()), "skipped", "--no-legend")
    assert out == "db front 5432/tcp taken by web\n"


def test_rules_are_printed_as_they_are(bus: Bus) -> None:
    assert ctl(bus, FakeSource(status()), "rules") == (0, "*filter\nCOMMIT\n", "")


def test_resync_says_what_it_did(bus: Bus) -> None:
    answer = ctl(bus, FakeSource(status()), "resync")
    assert answer == (0, "rules added: 3, removed: 1, in 12 ms\n", "")


def test_resync_as_a_plain_user_is_refused_with_the_way_out(bus: Bus) -> None:
    need("dbus-daemon")

    async def body() -> None:
        async with serving(bus, FakeSource(status())):
            code, out, err = await command(bus, *PLAIN_CTL, "resync")
            assert (code, out) == (4, "")
            assert err == "not permitted: only root may do that: sudo ipv6natctl resync\n"
            assert (await command(bus, *PLAIN_CTL, "status"))[0] == 0

    run(body())


@pytest.mark.parametrize("state", State)
def test_status_exits_0_only_when_synced(bus: Bus, state: State) -> None:
    code, out, err = ctl(bus, FakeSource(status(state=state, state_reason="why")))
    assert (code, err) == (0 if state is State.SYNCED else 1, "")
    assert f"    State: {state} (why)\n" in out
    assert " ipv6natd: 1.2.3\n" in out
    assert "  Skipped: 1 (ipv6natctl skipped)\n" in out


@pytest.mark.parametrize("words", [("--json=short",), ("--json", "short"), ("-j",), ("--json",)])
def test_json_is_one_line_where_no_terminal_is(bus: Bus, words: tuple[str, ...]) -> None:
    code, out, _ = ctl(bus, FakeSource(status(mapping())), *words, "mappings")
    assert code == 0
    assert out.count("\n") == 1
    (row,) = json.loads(out)
    assert (row["ContainerName"], row["HostPort"], row["Since"]) == ("web", 8000, 0)


@pytest.mark.parametrize(
    ("what", "kind"),
    [("status", dict), ("networks", list), ("skipped", list), ("resync", dict), ("rules", str)],
)
def test_every_command_speaks_json(bus: Bus, what: str, kind: type[Any]) -> None:
    _, out, _ = ctl(bus, FakeSource(status()), what, "--json=pretty")
    assert isinstance(json.loads(out), kind)
    assert ctl(bus, FakeSource(status()), what, "--json=off")[1] != out


def test_a_name_cannot_move_the_cursor(bus: Bus) -> None:
    source = FakeSource(status(mapping(name="\x1b[2J\nfake row\u202e")))
    for words in (("mappings",), ("mappings", "--json=pretty"), ("mappings", "-j")):
        _, out, _ = ctl(bus, source, *words)
        assert "\x1b" not in out
        assert "\u202e" not in out
        assert "\nfake" not in out


def test_a_daemon_that_does_not_run_is_named_with_the_command_that_starts_it(bus: Bus) -> None:
    async def body() -> None:
        for what in ("status", "mappings", "resync"):
            assert await command(bus, *CTL, what) == (
                3,
                "",
                "ipv6natd is not running: systemctl start ipv6natd\n",
            )

    run(body())


def test_a_bus_that_does_not_run_is_named(bus: Bus) -> None:
    bus.stop()

    async def body() -> None:
        code, out, err = await command(bus, *CTL)
        assert (code, out) == (1, "")
        assert err.startswith("cannot reach the system bus at unix:path=")
        assert err.endswith(": systemctl status dbus.socket\n")
        assert err.count("\n") == 1

    run(body())


@pytest.mark.parametrize("words", ["nonsense", "--nonsense", "--json=xml", "status extra"])
def test_wrong_usage_exits_2(words: str) -> None:
    done = subprocess.run((*CTL, *words.split()), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_help_teaches_with_examples_and_version_is_one_line() -> None:
    shown = subprocess.run((*CTL, "--help"), capture_output=True, text=True, check=True).stdout
    for word in ("status", "mappings", "networks", "skipped", "resync", "rules", "examples:"):
        assert word in shown
    assert max(len(line) for line in shown.splitlines()) <= 100
    shown = subprocess.run((*CTL, "--version"), capture_output=True, text=True, check=True).stdout
    assert shown == f"ipv6natctl {__version__}\n"


def test_a_locale_without_unicode_is_no_error(bus: Bus) -> None:
    async def body() -> None:
        async with serving(bus, FakeSource(status(mapping(name="käse")))):
            plain = ("env", "LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0")
            code, out, err = await command(bus, *plain, *CTL, "mappings", "--no-legend")
            assert (code, err) == (0, "")
            assert "k\\xe4se" in out

    run(body())


def test_a_reader_that_leaves_early_is_no_error(bus: Bus) -> None:
    async def body() -> None:
        many = status(*(mapping(number) for number in range(3000)))
        async with serving(bus, FakeSource(many)):
            words = " ".join(f"'{word}'" for word in CTL)
            code, out, err = await command(bus, "sh", "-c", f"{words} mappings | head -n1")
            assert (code, out.split()[0], err) == (0, "PROTOCOL", "")

    run(body())


def test_width_counts_columns_not_characters() -> None:
    assert [width(text) for text in ("abc", "容器", "e\u0301", "")] == [3, 4, 1, 0]
    assert table(("A", "B"), [("容器", "x"), ("y", "")], legend=False) == "容器 x\ny    -\n"


def test_printable_leaves_ordinary_text_alone() -> None:
    assert printable("käse 容器 'x' \\n") == "käse 容器 'x' \\n"
    assert printable("\x00\x7f\x9b\n\u2028\ud800") == r"\x00\x7f\x9b\n\u2028\ud800"


def test_it_does_not_start_what_was_stopped() -> None:
    assert not any(name.endswith(".service") for name in os.listdir("dbus"))  # noqa: PTH208
