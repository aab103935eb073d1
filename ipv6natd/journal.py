"""What people read in the journal: what they can see change, each thing once."""

from __future__ import annotations

import logging

from ipv6natd.host_checks import Found
from ipv6natd.model import Mapping, Skipped, changes
from ipv6natd.status import Status, one_line

log = logging.getLogger(__name__)


def tell_found(old: Found, new: Found) -> None:
    """Each finding once when it comes, once when it goes; of one network, as its warning."""
    for each in new.findings:
        if each not in old.findings and not each.bridge:
            log.warning("%s", each.text)
    for each in old.findings:
        if each not in new.findings:
            log.info("no longer so: %s", each.text)
    for note in new.notes:
        if note not in old.notes:
            log.info("%s", note)


def tell(old: Status, new: Status) -> None:
    """The journal: what a person can see change, and nothing else above DEBUG."""
    gone, come = changes(old.mappings, new.mappings)
    for mapping in gone:
        log.info("withdrew %s", described(mapping))
    for mapping in come:
        log.info("published %s", described(mapping))
    for skipped in new.skipped:
        if skipped not in old.skipped:
            log.warning("skipped %s: %s", _subject(skipped), skipped.reason)
    known = {(each.id, each.warnings) for each in old.networks}
    for network in new.networks:
        if (network.id, network.warnings) not in known:
            for warning in network.warnings:
                log.warning("network %s: %s", network.name, warning)
    if (old.state, old.state_reason) != (new.state, new.state_reason):
        log.info("%s", one_line(new))
    else:
        log.debug("%s", one_line(new))


def _subject(skipped: Skipped) -> str:
    if skipped.container_name:
        return f"{skipped.port} of container {skipped.container_name}"
    return f"network {skipped.network}" if skipped.network else "everything"


def described(mapping: Mapping) -> str:
    """ "[::]:443/tcp -> web [fd00::2]:443", as a person would say it."""
    host = f"{mapping.host_port}"
    inside = f"{mapping.container_port}"
    if mapping.count > 1:
        host += f"-{mapping.host_port_end}"
        inside += f"-{mapping.container_port_end}"
    return (
        f"[{mapping.host_address}]:{host}/{mapping.protocol} -> "
        f"{mapping.container_name} [{mapping.container_address}]:{inside}"
    )
