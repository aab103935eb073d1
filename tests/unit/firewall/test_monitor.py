"""The output of `nft monitor`."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pytest

from ipv6natd.firewall import monitor
from ipv6natd.firewall.monitor import WRITER, MonitorOutput, writer
from ipv6natd.system.process import run

OURS = 4242
RULE = "add rule ip6 nat IPV6NAT-DNAT handle 7 tcp dport 80 counter packets 0 bytes 0 accept\n"
BY = "# new generation 3 by process {} (ip6tables-nft-r)\n"


def foreign_writes(text: str, size: int = 1 << 16) -> list[bool]:
    """For each line, whether it ends a foreign generation. `text` arrives in chunks of `size`."""
    output, foreign = MonitorOutput(deque([OURS])), []
    for line in text.splitlines(keepends=True):
        data = line.encode()
        cuts = range(0, len(data), size)
        results = [output.has_foreign_write(data[at : at + size]) for at in cuts]
        foreign.append(True in results)
    return foreign


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_a_generation_of_our_own_process_is_ignored_once(size: int) -> None:
    text = (RULE + BY.format(OURS)) * 2
    assert foreign_writes(text, size) == [False, False, False, True]


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_a_foreign_generation_counts_if_it_changes_ipv6(size: int) -> None:
    inet = RULE.replace("ip6", "inet")
    ipv4 = RULE.replace("ip6", "ip")
    for line, counts in ((RULE, True), (inet, True), (ipv4, False)):
        assert foreign_writes(line * 3 + BY.format(1), size)[-1] is counts
    assert foreign_writes(RULE + ipv4 + BY.format(1) + ipv4 + BY.format(2), size)[2::2] == [
        True,
        False,
    ]


def test_a_generation_of_a_process_with_our_name_is_ignored_whatever_its_number() -> None:
    """In a pid namespace of its own, the numbers are others."""
    ours = f"# new generation 3 by process 7 ({WRITER})\n"
    assert foreign_writes((RULE + ours) * 2 + RULE + BY.format(7))[-3:] == [False, False, True]


def test_a_link_gives_the_name_only_where_the_numbers_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(monitor, "kernel_sees_our_pids", lambda: True)
    assert writer("/usr/bin/cat") is None
    monkeypatch.setattr(monitor, "kernel_sees_our_pids", lambda: False)
    for _ in range(2):
        link = writer("/usr/bin/cat")
        assert link is not None
        argv = ["cat", "/proc/self/comm"]
        assert run(argv, timeout=10, executable=link).stdout == f"{WRITER}\n"
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/proc/nowhere")
    assert writer("/usr/bin/cat") is None


def test_a_generation_without_a_process_is_foreign() -> None:
    assert foreign_writes(RULE + "# new generation 9\n")[-1]


@pytest.mark.parametrize("size", [1, 7, 1 << 16])
def test_lost_events_count_as_a_foreign_write(size: int) -> None:
    """Q3."""
    lost = "# ERROR: We lost some netlink events!\n"
    assert foreign_writes(RULE + lost + BY.format(OURS), size) == [False, True, False]
