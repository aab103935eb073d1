"""Journal messages about changes of the status and of the findings about the host."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from functools import partial
from typing import TypeVar

from ipv6natd.host.findings import Finding, Severity
from ipv6natd.model import Mapping, Skipped, mapping_changes
from ipv6natd.report.status import Status, one_line, port_range
from ipv6natd.system.messages import Extra, MessageId, log_fields

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_LINES_PER_KIND = 100
"""Lines of one kind for one pass. The others are logged with -debug only."""


def log_findings(old: Collection[Finding], new: Collection[Finding]) -> None:
    """Log new findings and resolved errors. An error of one network is logged as its warning."""
    for finding in new:
        if finding in old:
            continue
        if finding.severity is Severity.NOTE:
            log.info("%s", finding.text, extra=log_fields(MessageId.HOST_NOTE, **_fields(finding)))
        elif not finding.network:
            extra = log_fields(MessageId.HOST_FINDING, **_fields(finding))
            log.warning("%s", finding.text, extra=extra)
    for finding in old:
        if finding not in new and finding.severity is not Severity.NOTE:
            extra = log_fields(MessageId.HOST_FINDING_RESOLVED, **_fields(finding))
            log.info("resolved: %s", finding.text, extra=extra)


def _fields(finding: Finding) -> dict[str, str]:
    return {
        "about": finding.topic,
        "severity": finding.severity,
        "network": finding.network,
        "command": finding.command,
    }


def log_changes(old: Status, new: Status) -> None:
    """Log the changes of mappings, skipped ports, warnings and state; the rest at DEBUG only."""
    removed, added = mapping_changes(old.mappings, new.mappings)
    for verb, mappings, message_id in (
        ("withdrew", removed, MessageId.WITHDRAWN),
        ("published", added, MessageId.PUBLISHED),
    ):
        _log_entries(logging.INFO, verb, mappings, partial(_mapping_line, message_id), "mappings")
    if old.skipped != new.skipped:
        known_skipped = set(old.skipped)
        skipped = [entry for entry in new.skipped if entry not in known_skipped]
        _log_entries(logging.WARNING, "skipped", skipped, _skipped_line, "skipped")
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
    for index, entry in enumerate(entries):
        line_level = level if index < MAX_LINES_PER_KIND else logging.DEBUG
        if log.isEnabledFor(line_level):
            text, extra = describe(entry)
            log.log(line_level, "%s %s", verb, text, extra=extra)
    more = len(entries) - MAX_LINES_PER_KIND
    if more > 0:
        log.log(level, "%s %d more: ipv6natctl %s", verb, more, command)


def _skipped_line(skipped: Skipped) -> tuple[str, Extra]:
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


def _mapping_line(message_id: MessageId, mapping: Mapping) -> tuple[str, Extra]:
    return mapping_text(mapping), log_fields(
        message_id,
        container=mapping.container_name,
        container_id=mapping.container_id,
        network=mapping.network_name,
        port=port_range(mapping.host_port, mapping.host_port_end),
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
    host = port_range(mapping.host_port, mapping.host_port_end)
    inside = port_range(mapping.container_port, mapping.container_port_end)
    return (
        f"[{mapping.host_address}]:{host}/{mapping.protocol} -> "
        f"{mapping.container_name} [{mapping.container_address}]:{inside}"
    )
