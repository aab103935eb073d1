"""What people read in the journal: what they can see change, each thing once.

Each kind of message has an id, by which the journal finds its explanation in
systemd/ipv6natd.catalog, and fields: `journalctl -u ipv6natd IPV6NATD_CONTAINER=web`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

from ipv6natd.host.findings import Found
from ipv6natd.model import Mapping, Skipped, changes
from ipv6natd.report.status import Status, one_line

log = logging.getLogger(__name__)
T = TypeVar("T")
Extra = dict[str, dict[str, str]]

MAX_TOLD = 100
"""Lines of one kind for one pass; the others show with -debug."""


class Told(StrEnum):
    """What a message is about, as its MESSAGE_ID. Never changed, and never used for another."""

    PUBLISHED = "0acacedbd5094ac1954dfcf3c9cc07a4"
    WITHDRAWN = "09db0566d4ea4ab7b0f39f14c79fa28c"
    SKIPPED = "3884c6e2d90e4b4a8ffdfd47df4c0d03"
    NETWORK_WARNED = "e0af989408b447a6bfb559a6fd1bfbe3"
    STATE_CHANGED = "0f43b4f3c9a7487fa03a6b8e4b35f7e9"
    HOST_FOUND = "3070fc25cd1945d9bad3fe4bb92ea7bc"
    HOST_MENDED = "b50353a2a1f64022a46103f61fccde8d"
    DRIFT = "bcf61492ecc04517975521ffe0f5cf2f"
    WRITE_FAILED = "0d6d5cb66ede4217a5e7bc8e4cb1734f"
    RELOAD_REFUSED = "280953c2519c41b38188b6a396ca1f3e"
    STOPPED = "0a9cd8caa49c48dd8bfbde13f5bc24e6"
    ENGINE_LOST = "055d8becb5de44eebcb53fceb4fd0437"
    SYSCTL = "cf8f9929ad5840e2a49ae8181dadc327"


def noted(told: Told, **fields: str) -> Extra:
    """The `extra` of a message: its id, and `fields` as IPV6NATD_...; empty ones are left out."""
    named = {f"IPV6NATD_{name.upper()}": value for name, value in fields.items() if value}
    return {"fields": {"MESSAGE_ID": told.value, **named}}


def tell_found(old: Found, new: Found) -> None:
    """Each finding once when it comes, once when it goes; of one network, as its warning."""
    for each in new.findings:
        if each not in old.findings and not each.bridge:
            log.warning("%s", each.text, extra=noted(Told.HOST_FOUND))
    for each in old.findings:
        if each not in new.findings:
            log.info("no longer so: %s", each.text, extra=noted(Told.HOST_MENDED))
    for note in new.notes:
        if note not in old.notes:
            log.info("%s", note)


def tell(old: Status, new: Status) -> None:
    """The journal: what a person can see change, and nothing else above DEBUG."""
    gone, come = changes(old.mappings, new.mappings)
    _tell_each(logging.INFO, "withdrew", gone, _withdrawn, "mappings")
    _tell_each(logging.INFO, "published", come, _published, "mappings")
    if old.skipped != new.skipped:
        known_skipped = set(old.skipped)
        skipped = [each for each in new.skipped if each not in known_skipped]
        _tell_each(logging.WARNING, "skipped", skipped, _skipped, "skipped")
    known = {(each.id, each.warnings) for each in old.networks}
    for network in new.networks:
        if (network.id, network.warnings) not in known:
            for warning in network.warnings:
                extra = noted(Told.NETWORK_WARNED, network=network.name)
                log.warning("network %s: %s", network.name, warning, extra=extra)
    if (old.state, old.state_reason) != (new.state, new.state_reason):
        log.info("%s", one_line(new), extra=noted(Told.STATE_CHANGED, state=new.state))
    else:
        log.debug("%s", one_line(new))


def _tell_each(
    level: int, verb: str, things: list[T], word: Callable[[T], tuple[str, Extra]], command: str
) -> None:
    told = things if log.isEnabledFor(logging.DEBUG) else things[:MAX_TOLD]
    for place, (words, extra) in enumerate(map(word, told)):
        log.log(level if place < MAX_TOLD else logging.DEBUG, "%s %s", verb, words, extra=extra)
    if len(things) > MAX_TOLD:
        log.log(level, "%s %d more: ipv6natctl %s", verb, len(things) - MAX_TOLD, command)


def _published(mapping: Mapping) -> tuple[str, Extra]:
    return described(mapping), _about(Told.PUBLISHED, mapping)


def _withdrawn(mapping: Mapping) -> tuple[str, Extra]:
    return described(mapping), _about(Told.WITHDRAWN, mapping)


def _skipped(skipped: Skipped) -> tuple[str, Extra]:
    port, _, protocol = skipped.port.partition("/")
    extra = noted(
        Told.SKIPPED,
        container=skipped.container_name,
        network=skipped.network,
        port=port,
        protocol=protocol,
        reason=skipped.reason,
    )
    return f"{_subject(skipped)}: {skipped.reason}", extra


def _about(told: Told, mapping: Mapping) -> Extra:
    return noted(
        told,
        container=mapping.container_name,
        container_id=mapping.container_id,
        network=mapping.network_name,
        port=_run(mapping.host_port, mapping.host_port_end),
        protocol=mapping.protocol,
        host_address=str(mapping.host_address),
        container_address=str(mapping.container_address),
    )


def _subject(skipped: Skipped) -> str:
    if skipped.container_name:
        return f"{skipped.port} of container {skipped.container_name}"
    return f"network {skipped.network}" if skipped.network else "everything"


def described(mapping: Mapping) -> str:
    """ "[::]:443/tcp -> web [fd00::2]:443", as a person would say it."""
    host = _run(mapping.host_port, mapping.host_port_end)
    inside = _run(mapping.container_port, mapping.container_port_end)
    return (
        f"[{mapping.host_address}]:{host}/{mapping.protocol} -> "
        f"{mapping.container_name} [{mapping.container_address}]:{inside}"
    )


def _run(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"
