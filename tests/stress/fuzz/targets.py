"""All fuzzers by name."""

from __future__ import annotations

from tests.stress.fuzz import bus, engine, tools, words

TARGETS = {
    each.name: each for each in (*engine.TARGETS, *tools.TARGETS, *words.TARGETS, *bus.TARGETS)
}
