"""docs/packet.svg: the ways of packets, drawn from the table below.

A test checks that the reviewed rules contain the rules in the boxes.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from typing import NamedTuple

from tests import ROOT

PACKET_SVG = ROOT / "docs" / "packet.svg"

CLIENT, HOST = "2001:db8:1::2", "2001:db8:1::1"
CONTAINER = "fd00:a::2"


class Box(NamedTuple):
    """A box: its name, a description, and the rule that applies there."""

    name: str
    about: str
    rule: str = ""
    kind: str = "host"


class Way(NamedTuple):
    """The way of one packet; `headers` are the source and the destination between the boxes."""

    title: str
    boxes: tuple[Box, ...]
    headers: tuple[tuple[str, str], ...]


AT_CLIENT = Box("client", CLIENT, kind="end")
AT_CONTAINER = Box("container", CONTAINER, kind="end")
WAYS = (
    Way(
        "To a published port: the container sees the client",
        (
            AT_CLIENT,
            Box("nat PREROUTING", "a host port becomes a container port", "-j DNAT"),
            Box("filter FORWARD", "first DOCKER-USER, then packets after DNAT", "--ctstate DNAT"),
            AT_CONTAINER,
        ),
        (
            (CLIENT, f"[{HOST}]:8080"),
            (CLIENT, f"[{CONTAINER}]:80"),
            (CLIENT, f"[{CONTAINER}]:80"),
        ),
    ),
    Way(
        "The reply: conntrack reverses the translation",
        (
            AT_CONTAINER,
            Box("filter FORWARD", "part of an established flow", "--ctstate ESTABLISHED"),
            Box("conntrack", "the container's address becomes the host's"),
            AT_CLIENT,
        ),
        (
            (f"[{CONTAINER}]:80", CLIENT),
            (f"[{CONTAINER}]:80", CLIENT),
            (f"[{HOST}]:8080", CLIENT),
        ),
    ),
    Way(
        "From a container: with an address of the host",
        (
            AT_CONTAINER,
            Box("filter FORWARD", "to the outside, not into other networks", "-i br-a -j ACCEPT"),
            Box("nat POSTROUTING", "the private source becomes the host's", "-j MASQUERADE"),
            Box("the Internet", "2001:db8:ff::1", kind="end"),
        ),
        (
            (CONTAINER, "2001:db8:ff::1"),
            (CONTAINER, "2001:db8:ff::1"),
            (HOST, "2001:db8:ff::1"),
        ),
    ),
    Way(
        "To the container's own address: closed",
        (
            AT_CLIENT,
            Box("filter FORWARD", "no DNAT before", "! -i br-a -o br-a -j DROP"),
            Box("dropped", "published or not", kind="stop"),
        ),
        (
            (CLIENT, f"[{CONTAINER}]:80"),
            ("", ""),
        ),
    ),
    Way(
        "To [::1]: the kernel cannot forward this address",
        (
            Box("the host itself", "::1", kind="end"),
            Box("filter INPUT", "rejected at once without a proxy", "-d ::1/128 -p tcp"),
            Box("userland proxy", "with the proxy, Docker answers", kind="end"),
            AT_CONTAINER,
        ),
        (
            ("::1", "[::1]:8080"),
            ("::1", "[::1]:8080"),
            ("the bridge", f"[{CONTAINER}]:80"),
        ),
    ),
)

WIDTH, LANE, TOP = 1366, 132, 20
BOX_WIDTH, BOX_HEIGHT, GAP = 200, 74, 175
STYLE = """\
text { font: 13px sans-serif; fill: #1f2328; }
.title { font-weight: bold; font-size: 15px; }
.name { font-weight: bold; }
.rule, .header { font: 11px monospace; fill: #57606a; }
.host { fill: #ddf4ff; stroke: #0969da; }
.end { fill: #f6f8fa; stroke: #57606a; }
.stop { fill: #ffebe9; stroke: #cf222e; }
.arrow { stroke: #57606a; stroke-width: 1.5; marker-end: url(#head); }
#head path { fill: #57606a; }
.paper { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3; }
.rule, .header { fill: #9198a1; }
.host { fill: #121d2f; }
.end { fill: #161b22; }
.stop { fill: #25171c; }
.paper { fill: #0d1117; }
}"""


def packet_svg() -> str:
    """The SVG text of the picture."""
    return "\n".join(_lines()) + "\n"


def _lines() -> Iterator[str]:
    height = TOP + LANE * len(WAYS)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        'aria-label="How packets go to and from a container">'
    )
    yield f"<style>{STYLE}</style>"
    yield (
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>'
    )
    yield f'<rect class="paper" width="{WIDTH}" height="{height}"/>'
    for number, way in enumerate(WAYS):
        yield from _way(way, TOP + number * LANE)
    yield "</svg>"


def _way(way: Way, top: int) -> Iterator[str]:
    yield _text(20, top + 12, way.title, "title")
    for number, box in enumerate(way.boxes):
        left = 20 + number * (BOX_WIDTH + GAP)
        yield from _box(box, left, top + 24)
        if number:
            yield from _arrow(left - GAP, left, top + 24 + BOX_HEIGHT // 2, way.headers[number - 1])


def _box(box: Box, left: int, top: int) -> Iterator[str]:
    yield (
        f'<rect class="{box.kind}" x="{left}" y="{top}" width="{BOX_WIDTH}" '
        f'height="{BOX_HEIGHT}" rx="6"/>'
    )
    middle = left + BOX_WIDTH // 2
    lines = [(box.name, "name"), *((line, "") for line in _folded(box.about))]
    if box.rule:
        lines.append((box.rule, "rule"))
    first = top + BOX_HEIGHT // 2 - 8 * (len(lines) - 1) + 4
    for number, (text, kind) in enumerate(lines):
        yield _text(middle, first + 16 * number, text, kind, "middle")


def _arrow(left: int, right: int, y: int, header: tuple[str, str]) -> Iterator[str]:
    yield f'<line class="arrow" x1="{left + 4}" y1="{y}" x2="{right - 4}" y2="{y}"/>'
    source, target = header
    if source:
        middle = (left + right) // 2
        yield _text(middle, y - 8, f"from {source}", "header", "middle")
        yield _text(middle, y + 18, f"to {target}", "header", "middle")


def _folded(text: str, longest: int = 27) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > longest:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _text(x: int, y: int, text: str, kind: str, anchor: str = "start") -> str:
    style = f' class="{kind}"' if kind else ""
    return f'<text{style} x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'
