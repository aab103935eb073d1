"""Unit tests of the filters of FindMappings: each field, several fields, and errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ipv6natd.dbus.lists import FilterError, matching
from ipv6natd.model import ManagedBy, Protocol
from tests.integration.bus.conftest import mapping

WEB = mapping(1, name="web")
DNS = replace(
    mapping(2, name="dns"),
    protocol=Protocol.UDP,
    network_name="back",
    network_id="d" * 64,
    host_port=5000,
    count=10,
    managed_by=ManagedBy.ENGINE,
)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, [WEB, DNS]),
        ({"Container": "web"}, [WEB]),
        ({"Container": "we"}, []),
        ({"Container": DNS.container_id}, [DNS]),
        ({"Container": WEB.container_id[:12]}, [WEB, DNS]),
        ({"Container": WEB.container_id[:11]}, []),
        ({"Network": "back"}, [DNS]),
        ({"Network": "dddddddddddd"}, [DNS]),
        ({"Port": 4999}, []),
        ({"Port": 5000}, [DNS]),
        ({"Port": 5009}, [DNS]),
        ({"Port": 5010}, []),
        ({"Protocol": "udp"}, [DNS]),
        ({"State": "native"}, [DNS]),
        ({"State": "active"}, [WEB]),
        ({"State": "active", "Protocol": "udp"}, []),
        ({"Container": ""}, []),
    ],
)
def test_matching_returns_mappings_that_pass_all_filters(
    wanted: dict[str, Any], found: list[Any]
) -> None:
    assert list(matching((WEB, DNS), wanted)) == found


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({"Name": "x"}, "'Name'; there are Container, Network, Port, Protocol, State"),
        ({"Port": "80"}, "Port is a whole number, not '80'"),
        ({"Port": True}, "Port is a whole number, not True"),
        ({"Container": 1}, "Container is a string, not 1"),
    ],
)
def test_matching_rejects_a_bad_filter_with_a_sentence(wanted: dict[str, Any], text: str) -> None:
    with pytest.raises(FilterError, match=text):
        matching((), wanted)
