"""What people read in the journal: what they can see change, each thing once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from ipv6natd.host.findings import HostReport
from ipv6natd.model import Mapping, Skipped, mapping_changes
from ipv6natd.report.status import Status, one_line
from ipv6natd.system.messages import Extra, MessageId, log_fields

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_TOLD = 100
"""Lines of one kind for one pass; the others show with -debug."""


def tell_found(old: HostReport, new: HostReport) -> None:
    """Each finding once when it comes, once when it goes; of one network, as its warning."""
    for each in new.findings:
        if each not in old.findings and not each.bridge:
            log.warning("%s", each.text, extra=log_fields(MessageId.HOST_FINDING))
    for each in old.findings:
        if each not in new.findings:
            log.info(
                "no longer so: %s", each.text, extra=log_fields(MessageId.HOST_FINDING_RESOLVED)
            )
    for note in new.notes:
        if note not in old.notes:
            log.info("%s", note)


def tell(old: Status, new: Status) -> None:
    """The journal: what a person can see change, and nothing else above DEBUG."""
    gone, come = mapping_changes(old.mappings, new.mappings)
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
                extra = log_fields(MessageId.NETWORK_WARNING, network=network.name)
                log.warning("network %s: %s", network.name, warning, extra=extra)
    if (old.state, old.state_reason) != (new.state, new.state_reason):
        log.info("%s", one_line(new), extra=log_fields(MessageId.STATE_CHANGED, state=new.state))
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
    return described(mapping), _about(MessageId.PUBLISHED, mapping)


def _withdrawn(mapping: Mapping) -> tuple[str, Extra]:
    return described(mapping), _about(MessageId.WITHDRAWN, mapping)


def _skipped(skipped: Skipped) -> tuple[str, Extra]:
    port, _, protocol = skipped.port.partition("/")
    extra = log_fields(
        MessageId.SKIPPED,
        container=skipped.container_name,
        network=skipped.network,
        port=port,
        protocol=protocol,
        reason=skipped.reason,
    )
    return f"{_subject(skipped)}: {skipped.reason}", extra


def _about(told: MessageId, mapping: Mapping) -> Extra:
    return log_fields(
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
