"""Replaces in a report what tells who and where: names, public addresses, the engine's host."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any
from urllib.parse import unquote

from ipv6natd.system.terminal import printable

ENGINE, THIS_HOST = "engine", "this-host"
"""What names of the engine's host and of this host become. Names of another kind get a number."""
_SENTENCES = frozenset(
    (
        *("ContainerName", "Network", "Name", "name", "Text", "Command", "Reason", "Warnings"),
        *("StateReason", "Journal", "warnings", "problem", "problems"),
    )
)
"""The fields that can contain names. Elsewhere a word of a rule could be one by chance."""
_KEPT_NAMES = frozenset({"", "bridge", "host", "none", "docker_gwbridge", "default"})
"""Names that the engine gives itself."""
_KEPT_HOSTS = frozenset({"localhost", "docker", "ipv6natd", "systemd"})
"""Names of hosts that are words of our own sentences."""

_AFTER_ESCAPE = r"(?<=\\[nrt])|(?<=\\x[0-9a-f]{2})|(?<=\\u[0-9a-f]{4})|(?<=\\U[0-9a-f]{8})"
"""After a character that `printable` has escaped. Its last letter is no part of the next word."""
_ADDRESSES = re.compile(
    rf"(?:(?<![0-9A-Za-z])|{_AFTER_ESCAPE})"
    r"(?=[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:|[0-9A-Fa-f]{1,4}:[0-9]{1,3}\.|[0-9]{1,3}\.[0-9]{1,3}\.)"
    r"[0-9A-Fa-f:.]+(?:/[0-9]{1,3})?"
)
"""Text that may start with an address. `ipaddress` decides where the address ends."""
_IPV4 = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9])")
_CUT_OFF = re.compile(r"[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{1,4}){2,6}(?![0-9A-Fa-f])")
"""The first groups of an address at the end of a text that was too long."""
_MAX_COLONS = 8
_LONGEST = len("0000:0000:0000:0000:0000:0000:255.255.255.255")
_ENCODED = re.compile(r"(?<![^\s\"'])[^\s\"']*%[0-9A-Fa-f]{2}[^\s\"']*")
_URL = re.compile(
    r"\b((?!unix|fd|file|npipe)[a-z][a-z0-9-]{0,15})://(?:[^\s/?#\"'<>]*@)?"
    r"(\[[^\]\s]*\]?|[^\s/:?#\"'<>()\[\]{},;\\]+)",
    re.IGNORECASE,
)
_LIBRARY_HOST = re.compile(
    r"((?:host ?= ?|[Hh]ostname |resolve |valid for |match (?:either of )?)['\"])([^'\"\s]+)"
    r"((?:['\"], ['\"][^'\"\s]+)*)"
)
"""How the errors of requests, urllib3 and OpenSSL name the host; the last one lists names of a
certificate."""
_LEFT_OUT = re.compile(r"(\"Names\": ?\[)[^\]]*")
"""The names in the first bytes of a row of the engine's list, as the journal shows them."""

_KEPT_NETWORKS = tuple(
    map(
        IPv6Network,
        (
            *("::/127", "fc00::/7", "fe80::/9", "ff00::/8", "100::/64"),
            *("2001:db8::/32", "3fff::/20"),
        ),
    )
)
"""Private, local and multicast addresses, and those for documentation. `is_global` differs between
the versions of Python."""
_OF_A_PREFIX = tuple(map(IPv6Network, ("ff30::/12", "ff70::/12")))
"""Multicast addresses that contain a unicast prefix (RFC 3306, RFC 3956)."""
_IPV4_AT_THE_END = tuple(
    map(IPv6Network, ("::ffff:0:0/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48"))
)
"""IPv4-mapped, SIIT and NAT64 (RFC 4291, 7915, 6052, 8215)."""
_MAPPED = _IPV4_AT_THE_END[0]
_ISATAP = (0x00005EFE, 0x02005EFE)
"""Bits 64 to 95 of an address that ends with an IPv4 address (RFC 5214)."""
_DOCUMENTATION = 0x20010DB8 << 96
_LONGEST_SHORT_PREFIX = 47
"""A longer prefix of a replacement has no host bits."""


@dataclass(slots=True)
class _Numbered:
    """A new text for each old one, in the order in which they appear."""

    made: Callable[[int], str]
    known: dict[str, str] = field(default_factory=dict)

    def of(self, old: str) -> str:
        """The new text for an old one."""
        return self.known.setdefault(old, self.made(len(self.known) + 1))


def engine_hosts(value: Any) -> Iterator[tuple[str, str]]:
    """(name, ENGINE) of the hosts that the texts in a value have as part of a URL or of an error
    of the library. Addresses are left out."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from engine_hosts(item)
    if not isinstance(value, str):
        return
    for pattern in (_URL, _LIBRARY_HOST):
        for found in pattern.finditer(unquote(value) if "%" in value else value):
            host = found[2].rstrip(".")
            if not _is_address(host):
                yield from ((name, ENGINE) for name in {host, host.lower()} - _KEPT_HOSTS)


def own_hosts(name: str) -> Iterator[tuple[str, str]]:
    """(name, THIS_HOST) of this host's name, and of its first part."""
    for each in {name, name.partition(".")[0]} - _KEPT_HOSTS:
        yield each, THIS_HOST


def _is_address(host: str) -> bool:
    try:
        ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


class Replacer:
    """Replaces names and public addresses in all texts, the same ones by the same ones.

    Addresses with the same first 64 bits keep that in common, so that subnets and their addresses
    fit. Private addresses stay, and so do those for documentation. An address that contains a
    public IPv4 address is public.
    """

    def __init__(self, names: Iterable[tuple[str, str]]) -> None:
        self._prefixes = _Numbered(str)
        self._hosts = _Numbered(str)
        self._ipv4 = _Numbered(lambda number: str(IPv4Address("198.51.0.0") + number))
        self._names = _replacements(names)
        longest_first = sorted(self._names, key=len, reverse=True)
        words = "|".join(map(re.escape, longest_first)) or r"(?!)"
        self._name = re.compile(words)
        # Docker's DNS has names such as container.network.
        joined = rf"(?:{words})(?:\.(?:{words}))*"
        self._joined = re.compile(rf"(?:(?<![\w.-])|{_AFTER_ESCAPE}){joined}(?![\w-])")

    def replaced(self, value: Any, key: str = "") -> Any:
        """The value of a field with all texts in it replaced; keys stay."""
        if isinstance(value, dict):
            return {name: self.replaced(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [self.replaced(item, key) for item in value]
        return self._text(value, key) if isinstance(value, str) else value

    def _text(self, text: str, key: str) -> str:
        if "%" in text:
            text = _ENCODED.sub(lambda found: self._decoded(found[0], key), text)
        return self._plain(text, key)

    def _decoded(self, text: str, key: str) -> str:
        """Percent-encoded text: without the encoding if there is something to replace."""
        plain = printable(unquote(text))
        return plain if self._plain(plain, key) != plain else text

    def _plain(self, text: str, key: str) -> str:
        text = _URL.sub(rf"\1://{ENGINE}", text)
        text = _ADDRESSES.sub(self._addresses, text)
        if key in _SENTENCES:
            text = _LIBRARY_HOST.sub(_without_hosts, text)
            text = _LEFT_OUT.sub(r"\1", text)
            text = self._joined.sub(self._new_names, text)
        return text

    def _new_names(self, found: re.Match[str]) -> str:
        return self._name.sub(lambda name: self._names[name[0]], found[0])

    def _addresses(self, found: re.Match[str]) -> str:
        """The text with all addresses in it replaced."""
        run, _, length = found[0].partition("/")
        parts, at = [], 0
        while at < len(run):
            if (end := _end_of_address(run, at)) > at:
                new = self._address(run[at:end])
                is_last = end == len(run) and length
                parts.append(_with_length(run[at:end], new, int(length)) if is_last else new)
                at = end
                continue
            if cut := _CUT_OFF.match(run, at):
                parts.append(self._address(f"{cut[0]}::"))
                at = cut.end()
                continue
            # A time, a version or the sum of a file: the next part may be an address.
            end = next((it for it in range(at + 1, len(run)) if run[it - 1] in ":."), len(run))
            parts.append(run[at:end])
            at = end
        return "".join(parts) + (f"/{length}" if length else "")

    def _address(self, text: str) -> str:
        address = ip_address(text)
        if isinstance(address, IPv4Address):
            return self._of_ipv4(address, text)
        kept = _is_in(address, _KEPT_NETWORKS) and not _is_in(address, _OF_A_PREFIX)
        ends = "." in text or int(address) >> 32 & 0xFFFFFFFF in _ISATAP
        if _is_in(address, _IPV4_AT_THE_END) or (kept and ends):
            return self._with_ipv4_at_the_end(address, text)
        return text if kept else self._of_ipv6(address)

    def _of_ipv4(self, address: IPv4Address, text: str) -> str:
        is_public = address.is_global and not address.is_multicast
        return self._ipv4.of(str(address)) if is_public else text

    def _with_ipv4_at_the_end(self, address: IPv6Address, text: str) -> str:
        old = IPv4Address(int(address) & 0xFFFFFFFF)
        new = self._of_ipv4(old, str(old))
        if new == str(old):
            return text
        if address in _MAPPED:
            return f"::ffff:{new}"
        return str(IPv6Address(int(address) ^ int(old) | int(IPv4Address(new))))

    def _of_ipv6(self, address: IPv6Address) -> str:
        prefix = int(self._prefixes.of(str(int(address) >> 64)))
        low = int(address) & (1 << 64) - 1
        new = _DOCUMENTATION | (prefix & 0xFFFF) << 80 | prefix >> 16 << 64
        return str(IPv6Address(new | (int(self._hosts.of(str(low))) if low else 0)))


def _replacements(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name -> its replacement, also for the name as our texts escape it."""
    # In the order of the names, because the decisions follow this order.
    kinds = {name: kind for name, kind in names if name not in _KEPT_NAMES}
    numbered = sorted(name for name, kind in kinds.items() if kind not in (ENGINE, THIS_HOST))
    digits = len(str(len(numbered)))
    new = {name: kind for name, kind in kinds.items() if kind in (ENGINE, THIS_HOST)}
    for number, name in enumerate(numbered, 1):
        new[name] = f"{kinds[name]}{number:0{digits}}"
    for name in tuple(new):
        escaped = (printable(name), repr(name)[1:-1], ascii(name)[1:-1], json.dumps(name)[1:-1])
        for other in escaped:
            new.setdefault(other, new[name])
    return new


def _without_hosts(found: re.Match[str]) -> str:
    host = found[2] if _is_address(found[2]) else ENGINE
    return found[1] + host + re.sub(r"[^'\", ]+", ENGINE, found[3])


def _is_in(address: IPv6Address, networks: Iterable[IPv6Network]) -> bool:
    return any(address in network for network in networks)


def _end_of_address(text: str, at: int) -> int:
    """The end of the longest address that starts there; `at` if none does. The text may continue
    with a port or the end of a sentence."""
    ends = [
        end
        for end in range(min(len(text), at + _LONGEST), at + 1, -1)
        if (end == len(text) or text[end] in ":.") and text.count(":", at, end) <= _MAX_COLONS
    ]
    if ipv4 := _IPV4.match(text, at):
        ends.append(ipv4.end())
    return next((end for end in ends if _is_address(text[at:end])), at)


def _with_length(old: str, new: str, length: int) -> str:
    """The replacement of an address with a prefix length: a network stays one."""
    if ":" not in old or new == old or length > _LONGEST_SHORT_PREFIX:
        return new
    try:
        IPv6Network((old, length))
    except ValueError:
        return new
    return str(IPv6Network((new, length), strict=False).network_address)
