"""The ids and fields of messages in the journal.

`journalctl --catalog` finds the explanation of an id in systemd/ipv6natd.catalog. A field selects
messages: `journalctl -u ipv6natd IPV6NATD_CONTAINER=web`.
"""

from __future__ import annotations

from enum import StrEnum

Extra = dict[str, dict[str, str]]


class MessageId(StrEnum):
    """MESSAGE_ID of each kind of message. An id is never changed and never reused."""

    PUBLISHED = "0acacedbd5094ac1954dfcf3c9cc07a4"
    WITHDRAWN = "09db0566d4ea4ab7b0f39f14c79fa28c"
    SKIPPED = "3884c6e2d90e4b4a8ffdfd47df4c0d03"
    NETWORK_WARNING = "e0af989408b447a6bfb559a6fd1bfbe3"
    STATE_CHANGED = "0f43b4f3c9a7487fa03a6b8e4b35f7e9"
    HOST_FINDING = "3070fc25cd1945d9bad3fe4bb92ea7bc"
    HOST_FINDING_RESOLVED = "b50353a2a1f64022a46103f61fccde8d"
    HOST_NOTE = "51fa1327dba242f89872e489e8733e63"
    DRIFT = "bcf61492ecc04517975521ffe0f5cf2f"
    WRITE_FAILED = "0d6d5cb66ede4217a5e7bc8e4cb1734f"
    RELOAD_REFUSED = "280953c2519c41b38188b6a396ca1f3e"
    STOPPED = "0a9cd8caa49c48dd8bfbde13f5bc24e6"
    ENGINE_LOST = "055d8becb5de44eebcb53fceb4fd0437"
    SYSCTL = "cf8f9929ad5840e2a49ae8181dadc327"


def log_fields(message_id: MessageId, **fields: str) -> Extra:
    """The `extra` of a message: its id, and `fields` as IPV6NATD_...; empty fields are left out."""
    prefixed = {f"IPV6NATD_{name.upper()}": value for name, value in fields.items() if value}
    return {"fields": {"MESSAGE_ID": message_id.value, **prefixed}}
