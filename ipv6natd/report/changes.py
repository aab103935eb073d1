"""Journal messages about changes of the status and of the findings."""

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

MAX_LINES_PER_KIND = 100
"""Lines of one kind for one pass. The others are logged with -debug only."""


def log_findings(old: HostReport, new: HostReport) -> None:
    """Log new and resolved findings. A finding about one network is logged as its warning."""
    for finding in new.findings:
        if finding not in old.findings and not finding.bridge:
            log.warning("%s", finding.text, extra=log_fields(MessageId.HOST_FINDING))
    for finding in old.findings:
        if finding not in new.findings:
            log.info(
                "resolved: %s", finding.text, extra=log_fields(MessageId.HOST_FINDING_RESOLVED)
            )
    for note in new.notes:
        if note not in old.notes:
            log.info("%s", note)


def log_changes(old: Status, new: Status) -> None:
    """Log the changes of mappings, skipped ports, warnings and state; the rest at DEBUG only."""
    removed, added = mapping_changes(old.mappings, new.mappings)
    _log_entries(logging.INFO, "withdrew", removed, _withdrawn_text, "mappings")
    _log_entries(logging.INFO, "published", added, _published_text, "mappings")
    if old.skipped != new.skipped:
        known_skipped = set(old.skipped)
        skipped = [entry for entry in new.skipped if entry not in known_skipped]
        _log_entries(logging.WARNING, "skipped", skipped, _skipped_text, "skipped")
    known = {(network.id, network.warnings) for network in old.networks}
    for network in new.networks:
        if (network.id, network.warnings) not in known:
            for warning in network.warnings:
                extra = log_fields(MessageId.NETWORK_WARNING, network=network.name)
                log.warning("network %s: %s", network.name, warning, extra=extra)
    if (old.state, old.state_reason) != (new.state, new.state_reason):
        log.info("%s", one_line(new), extra=log_fields(MessageId.STATE_CHANGED, state=new.state))
    else:
        log.debug("%s", one_line(new))


def _log_entries(
    level: int,
    verb: str,
    entries: list[T],
    describe: Callable[[T], tuple[str, Extra]],
    command: str,
) -> None:
    logged = entries if log.isEnabledFor(logging.DEBUG) else entries[:MAX_LINES_PER_KIND]
    for index, (text, extra) in enumerate(map(describe, logged)):
        log.log(
            level if index < MAX_LINES_PER_KIND else logging.DEBUG, "%s %s", verb, text, extra=extra
        )
    if len(entries) > MAX_LINES_PER_KIND:
        log.log(
            level, "%s %d more: ipv6natctl %s", verb, len(entries) - MAX_LINES_PER_KIND, command
        )


def _published_text(mapping: Mapping) -> tuple[str, Extra]:
    return mapping_text(mapping), _mapping_fields(MessageId.PUBLISHED, mapping)


def _withdrawn_text(mapping: Mapping) -> tuple[str, Extra]:
    return mapping_text(mapping), _mapping_fields(MessageId.WITHDRAWN, mapping)


def _skipped_text(skipped: Skipped) -> tuple[str, Extra]:
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


def _mapping_fields(message_id: MessageId, mapping: Mapping) -> Extra:
    return log_fields(
        message_id,
        container=mapping.container_name,
        container_id=mapping.container_id,
        network=mapping.network_name,
        port=_port_range(mapping.host_port, mapping.host_port_end),
        protocol=mapping.protocol,
        host_address=str(mapping.host_address),
        container_address=str(mapping.container_address),
    )


def _subject(skipped: Skipped) -> str:
    if skipped.container_name:
        return f"{skipped.port} of container {skipped.container_name}"
    return f"network {skipped.network}" if skipped.network else "everything"


def mapping_text(mapping: Mapping) -> str:
    """ "[::]:443/tcp -> web [fd00::2]:443"."""
    host = _port_range(mapping.host_port, mapping.host_port_end)
    inside = _port_range(mapping.container_port, mapping.container_port_end)
    return (
        f"[{mapping.host_address}]:{host}/{mapping.protocol} -> "
        f"{mapping.container_name} [{mapping.container_address}]:{inside}"
    )


def _port_range(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"
