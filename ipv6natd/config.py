"""Settings: one table of keys, read from files, environment and flags; later sources override.

Parsing is pure; `load` reads the files. An illegal value raises a ConfigError with the source, the
key and the legal values, before anything is changed.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any, NamedTuple

from ipv6natd.model import Policy

DEFAULT_FILE = Path("/etc/ipv6natd/ipv6natd.toml")
DEFAULT_DIRECTORY = Path("/etc/ipv6natd/conf.d")
DEFAULT_ENDPOINT = "unix:///run/docker.sock"
BACKENDS = ("auto", "nft", "legacy")


class ConfigError(Exception):
    """An unusable setting; the text names file, key and legal values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One row of the table of keys: the default, the parser, the legal values and the purpose.

    `parse` raises ValueError for an illegal value.
    """

    name: str
    default: object
    parse: Callable[[Any], object]
    legal: str
    about: str
    environment: str


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError
    return value


def _endpoint(value: Any) -> str:
    scheme, _, rest = value.partition("://") if isinstance(value, str) else ("", "", "")
    if scheme not in ("unix", "tcp", "http", "https") or not rest or not rest.isprintable():
        raise ValueError
    if scheme == "unix" and not rest.startswith("/"):
        raise ValueError
    if scheme != "unix" and "@" in rest:
        raise ValueError  # the engine has no passwords, and every user can read the endpoint
    return str(value)


def _absolute_path(value: Any) -> str:
    if not isinstance(value, str) or (value and not value.startswith("/")) or "\0" in value:
        raise ValueError
    return value


def _backend(value: Any) -> str:
    if value not in BACKENDS:
        raise ValueError
    return str(value)


def _prefixes(value: Any) -> tuple[IPv6Network, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError
    # IPv6Network accepts a zone ("%eth0"), which has no meaning in a prefix.
    if not all(isinstance(prefix, str) and "/" in prefix and "%" not in prefix for prefix in value):
        raise ValueError
    return tuple(IPv6Network(prefix) for prefix in value)


def _address_map(value: Any) -> dict[IPv4Address, IPv6Address]:
    if not isinstance(value, dict) or not all(
        isinstance(address, str) for address in value.values()
    ):
        raise ValueError
    return {IPv4Address(v4): IPv6Address(v6.partition("%")[0]) for v4, v6 in value.items()}


def _fwmark(value: Any) -> tuple[int, int] | None:
    if not isinstance(value, str):
        raise ValueError
    if not value:
        return None
    mark, _, mask = value.partition("/")
    numbers = int(mark, 0), int(mask or "0xffffffff", 0)
    if not all(0 <= number <= 0xFFFFFFFF for number in numbers):
        raise ValueError
    return numbers


def _resync_interval(value: Any) -> int:
    if type(value) is not int or not 10 <= value <= 86400:
        raise ValueError
    return value


def _textfile(value: Any) -> str:
    path = _absolute_path(value)
    # The textfile collector of node_exporter reads only files that end in .prom.
    if path and not path.endswith(".prom"):
        raise ValueError
    return path


def _key(
    default: object, parse: Callable[[Any], object], legal: str, about: str, environment: str = ""
) -> Any:
    """A field of Settings, and the rest of its row in the table of keys."""
    row = {"default": default, "parse": parse, "legal": legal, "about": about}
    return field(default_factory=lambda: default, metadata=row | {"environment": environment})


def _flag(default: bool, about: str, environment: str = "") -> Any:
    return _key(default, _bool, "true or false", about, environment)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings, validated. It has many fields: one for each key of the configuration file."""

    endpoint: str = _key(
        DEFAULT_ENDPOINT,
        _endpoint,
        "unix:///path or tcp://host:port, without a user",
        "Address of the Docker engine.",
        "DOCKER_HOST",
    )
    cert_path: str = _key(
        "",
        _absolute_path,
        "the absolute path of a directory",
        "Directory with key.pem, cert.pem and ca.pem, for a tcp:// endpoint with TLS.",
        "DOCKER_CERT_PATH",
    )
    tls_verify: bool = _flag(
        False,
        "Use TLS for a tcp:// endpoint and verify the engine's certificate against ca.pem.",
        "DOCKER_TLS_VERIFY",
    )
    retry: bool = _flag(
        True, "Reconnect when the connection to the engine fails; with false, exit with status 1."
    )
    cleanup: bool = _flag(
        False, "Remove all rules when the daemon stops; with false, published ports stay open."
    )
    debug: bool = _flag(False, "Log every rule that is added or removed.")
    backend: str = _key(
        "auto",
        _backend,
        " or ".join(BACKENDS),
        "Variant of ip6tables to use; auto selects the variant with Docker's IPv4 chains and, if "
        "Docker does not run or has none, that of the host's ip6tables.",
    )
    ip_forward: bool = _flag(
        True,
        "Switch IPv6 forwarding on when the rules are in force; clean-up restores the old values.",
    )
    nat_prefixes: tuple[IPv6Network, ...] = _key(
        (IPv6Network("fc00::/7"),),
        _prefixes,
        'a list of IPv6 prefixes such as ["fc00::/7"]',
        "A network is managed if all its IPv6 subnets are in these prefixes.",
    )
    ipv4_any_means_ipv6: bool = _flag(
        False, "As docker-ipv6nat did, publish bindings to 0.0.0.0 also on IPv6."
    )
    address_map: Mapping[IPv4Address, IPv6Address] = _key(
        {},
        _address_map,
        'a table such as { "192.0.2.10" = "2001:db8::10" }',
        "Publish bindings to the IPv4 address also on the IPv6 address.",
    )
    allow_direct_routing: bool = _flag(
        False, "Accept connections from outside to published ports of a container's own address."
    )
    accept_fwmark: tuple[int, int] | None = _key(
        None,
        _fwmark,
        'a mark such as "0x1", or mark and mask such as "0x1/0x3"',
        "Accept all forwarded packets that carry this firewall mark.",
    )
    resync_interval: int = _key(
        300,
        _resync_interval,
        "a number of seconds from 10 to 86400",
        "Seconds between two complete reads of the engine while no event arrives.",
    )
    metrics_textfile: str = _key(
        "",
        _textfile,
        "the absolute path of a file that ends in .prom, or empty for none",
        "Write metrics to this file, for the textfile collector of node_exporter.",
    )

    @property
    def policy(self) -> Policy:
        """The settings that decide about rules."""
        return Policy(**{field.name: getattr(self, field.name) for field in fields(Policy)})


KEYS = tuple(Key(name=key.name, **key.metadata) for key in fields(Settings))
_BY_NAME = {key.name: key for key in KEYS}
_CREDENTIALS = re.compile(r"://[^@]*@")
"""The user and the password in a URL."""


class Layer(NamedTuple):
    """Values from one source; later layers override earlier ones."""

    source: str
    values: Mapping[str, Any]


def settings(layers: Sequence[Layer]) -> Settings:
    """The merged settings of all layers. Raises ConfigError."""
    merged: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for source, values in layers:
        for name, value in values.items():
            merged[name], sources[name] = _parsed(source, name, value), source
    merged_settings = Settings(**merged)
    if problem := _tls_problem(merged_settings):
        problem_sources = dict.fromkeys(sources[name] for name in ("endpoint", "tls_verify"))
        raise ConfigError(f"{' and '.join(problem_sources)}: {problem}")
    return merged_settings


def _tls_problem(settings: Settings) -> str:
    """Why `tls_verify` is impossible with this endpoint; empty if it is possible or not set.

    As in the docker command, it has no effect for a unix socket.
    """
    scheme, _, rest = settings.endpoint.partition("://")
    if not settings.tls_verify or scheme == "unix":
        return ""
    what = f"tls_verify = true and endpoint = {settings.endpoint!a}"
    if scheme == "http":
        return (
            f"{what}: http:// is never encrypted, so no certificate can be verified; set "
            f"endpoint = {f'tcp://{rest}'!a}, or remove tls_verify and DOCKER_TLS_VERIFY"
        )
    if not settings.cert_path:
        return (
            f"{what}: cert_path is not set; set it to the directory with ca.pem, the certificate "
            "of the CA that signed the engine's certificate"
        )
    return ""


def _parsed(source: str, name: str, value: Any) -> object:
    key = _BY_NAME.get(name)
    if key is None:
        close = difflib.get_close_matches(name, _BY_NAME, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(
            f"{source}: unknown key {name[:60]!r}; {hint}legal keys are {', '.join(_BY_NAME)}"
        )
    try:
        return key.parse(value)
    except ValueError:
        shown = _CREDENTIALS.sub("://***@", ascii(value))
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise ConfigError(f"{source}: {name} = {shown}: must be {key.legal}") from None


def file_layer(source: str, text: str) -> Layer:
    """The values of one TOML file. Raises ConfigError if it is not TOML."""
    if text.startswith("\ufeff"):
        reason = "it starts with a byte order mark; save it as UTF-8 without one"
        raise ConfigError(f"{source}: {reason}")
    try:
        return Layer(source, tomllib.loads(text))
    except (ValueError, RecursionError) as error:
        # A number that is too long or brackets that are too deep raise other errors.
        raise ConfigError(f"{source}: this is not TOML: {error}") from None


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """DOCKER_HOST, DOCKER_CERT_PATH and DOCKER_TLS_VERIFY, read as the docker command does."""
    values: dict[str, Any] = {
        key.name: environ[key.environment]
        for key in KEYS
        if key.environment and environ.get(key.environment)
    }
    if "tls_verify" in values:
        # As in the docker command, every value except the empty one means true, even "0".
        values["tls_verify"] = True
    return Layer("environment", values)


def load(explicit: Path | None, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """Files, then environment, then flags. A default file may be missing."""
    paths = [explicit] if explicit else [DEFAULT_FILE, *sorted(DEFAULT_DIRECTORY.glob("*.toml"))]
    layers: list[Layer] = []
    for path in paths:
        try:
            layers.append(file_layer(str(path), path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            if explicit:
                raise ConfigError(f"{path}: there is no such file") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: this is not UTF-8") from None
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    return settings([*layers, environment_layer(environ), Layer("command line", flags)])


def example() -> str:
    """The shipped configuration file: every key, commented, with its default."""
    lines = [
        "# Configuration of ipv6natd. Each key shows its default.",
        "# Files in /etc/ipv6natd/conf.d/*.toml are read after this file and override it.",
    ]
    for key in KEYS:
        # A list, a table and a string in JSON are also such values in TOML.
        value = json.dumps("" if key.default is None else key.default, default=str)
        lines += ["", f"# {key.about}", f"# Legal: {key.legal}.", f"#{key.name} = {value}"]
    return "\n".join(lines) + "\n"
