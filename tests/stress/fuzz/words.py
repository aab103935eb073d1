"""Fuzzers of the user's input: configuration files, environment, command lines."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import fields

from ipv6natd import cli, config
from ipv6natd.config import ConfigError, Settings
from ipv6natd.ctl.commands import COMMANDS
from ipv6natd.ctl.usage import parse_arguments
from ipv6natd.model import Policy
from tests.stress.fuzz.target import Target, pieces

_FLAGS = cli._parser()


def settings(data: bytes) -> None:
    """Any file, environment and command line of ipv6natd give settings of the right types, or one
    printable error message that names the source."""
    file, environment, words = pieces(data, count=3)
    argv = _words(words)
    try:
        text = file.decode()
    except UnicodeDecodeError:
        text = ""
    pairs = (each.partition("=") for each in _words(environment))
    environ = {name: value for name, _, value in pairs}
    flags = _flags(argv)
    if flags is None:
        return
    try:
        layers = [config.file_layer("a.toml", text), config.environment_layer(environ)]
        made = config.settings([*layers, config.Layer("command line", flags)])
    except ConfigError as error:
        assert str(error).startswith(("a.toml: ", "environment: ", "command line: "))
        assert str(error).isprintable(), str(error)
        assert len(str(error)) < 3000
        return
    assert made.policy == Policy(**{each.name: getattr(made, each.name) for each in fields(Policy)})
    for each in fields(Settings):
        default, value = getattr(Settings(), each.name), getattr(made, each.name)
        assert default is None or type(value) is type(default), each.name
    for path in (made.endpoint, made.cert_path, made.metrics_textfile):
        assert "\0" not in path


def _words(data: bytes) -> list[str]:
    # The kernel passes any byte except NUL.
    lines = data.replace(b"\0", b"").split(b"\n")
    return [each.decode("utf-8", "surrogateescape") for each in lines if each]


def _flags(argv: list[str]) -> dict[str, object] | None:
    said, out = io.StringIO(), io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(out):
            found = vars(_FLAGS.parse_args(argv))
    except SystemExit as end:
        assert end.code in (0, 2)
        assert_sayable(said.getvalue())
        return None
    return {name: value for name, value in found.items() if name not in ("config", "flush")}


def assert_sayable(text: str) -> None:
    """Assert that an error message contains no control character."""
    assert all(line.isprintable() for line in text.split("\n")), text


def control(data: bytes) -> None:
    """Any arguments of ipv6natctl are an existing command with valid options, or give one printable
    error message and exit status 2."""
    argv = _words(data)
    said, out = io.StringIO(), io.StringIO()
    try:
        with redirect_stderr(said), redirect_stdout(out):
            name, options = parse_arguments(argv, {})
    except SystemExit as end:
        assert end.code in (0, 2)
        if end.code == 2:
            assert said.getvalue().endswith("; see ipv6natctl --help\n")
            assert said.getvalue()[:-1].isprintable(), said.getvalue()
        return
    command = COMMANDS[name]
    assert bool(options.argument) == bool(command.argument)
    assert {*options.filters, *options.flags} <= set(command.options)
    assert 0 < options.filters.get("port", 1) < 65536


TARGETS = (
    Target(
        name="settings",
        check=settings,
        seeds=(
            config.example().replace("\n#", "\n").encode()
            + b"\n---\nDOCKER_HOST=tcp://[::1]:2376\nDOCKER_TLS_VERIFY=1\n---\n-debug\n-retry=false",
            b'address_map = { "192.0.2.1" = "2001:db8::1" }\naccept_fwmark = "0x1/0x3"\n'
            b"---\n\n---\n--nat-prefixes\nfd00::/8,fd01::/16\n-resync-interval=30",
        ),
        words=(
            *(
                word.encode()
                for key in config.KEYS
                for word in (f"{key.name} = ", f"-{key.name.replace('_', '-')}\n")
            ),
            *(b"\n---\n", b'"""', b"0x", b"\\u0000", b"[[", b"fc00::/7", b"unix:///", b"1e400"),
        ),
    ),
    Target(
        name="control",
        check=control,
        seeds=(b"mappings\n--network\nshop*\n--protocol\nudp", b"--json=short\nexplain\n80/tcp"),
        words=tuple(
            f"{word}\n".encode()
            for word in (*COMMANDS, "--container", "--port", "--json", "-j", "--dry-run", "--")
        ),
    ),
)
