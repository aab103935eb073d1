"""The command line: its flags, its output and its exit status. No daemon is started."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ipv6natd import __version__, cli, config
from ipv6natd.config import KEYS, Settings
from ipv6natd.firewall.backend import FirewallError
from tests import ROOT


class Ran:
    """The calls of the command to serve and flush, with their settings."""

    def __init__(self) -> None:
        self.served: list[Settings] = []
        self.flushed: list[Settings] = []
        self.reload: Callable[[], Settings] | None = None
        self.raises: Exception | None = None

    def serve(self, settings: Settings, reload: Callable[[], Settings]) -> int:
        self.served.append(settings)
        self.reload = reload
        if self.raises:
            raise self.raises
        return 0

    def flush(self, settings: Settings) -> int:
        self.flushed.append(settings)
        return 0


@pytest.fixture(autouse=True)
def ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ran]:
    """Root on a host without configuration; serve and flush are fakes."""
    found = Ran()
    monkeypatch.setattr(cli, "_serve", found.serve)
    monkeypatch.setattr(cli, "_flush", found.flush)
    monkeypatch.setattr(cli, "_may_write_rules", lambda: True)
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "none.toml")
    monkeypatch.setattr(config, "DEFAULT_DIRECTORY", tmp_path / "none.d")
    for name in ("DOCKER_HOST", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "JOURNAL_STREAM"):
        monkeypatch.delenv(name, raising=False)
    environ = dict(os.environ)
    loggers = [logging.getLogger(n) for n in ("", "asyncio", "urllib3", "docker", "requests")]
    levels = [logger.level for logger in loggers]
    yield found
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    # The command removes variables.
    os.environ.update(environ)


def settings_of(ran: Ran, *argv: str) -> Settings:
    assert cli.run(argv) == 0
    (found,) = ran.served
    return found


def test_without_flags_the_defaults_hold(ran: Ran) -> None:
    assert settings_of(ran) == Settings()


@pytest.mark.parametrize("dash", ["-", "--"])
@pytest.mark.parametrize(
    ("flags", "setting", "value"),
    [
        (["cleanup"], "cleanup", True),
        (["debug"], "debug", True),
        (["retry"], "retry", True),
        (["retry=false"], "retry", False),
        (["retry=0"], "retry", False),
        (["retry=F"], "retry", False),
        (["cleanup=true"], "cleanup", True),
        (["cleanup=T"], "cleanup", True),
        (["tls-verify"], "tls_verify", True),
        (["ipv4-any-means-ipv6"], "ipv4_any_means_ipv6", True),
        (["endpoint", "tcp://h:1"], "endpoint", "tcp://h:1"),
        (["endpoint=tcp://h:1"], "endpoint", "tcp://h:1"),
        (["cert-path", "/certs"], "cert_path", "/certs"),
        (["backend", "legacy"], "backend", "legacy"),
        (["resync-interval", "60"], "resync_interval", 60),
        (["resync-interval=60"], "resync_interval", 60),
    ],
)
def test_a_flag_takes_one_dash_or_two(
    ran: Ran, dash: str, flags: list[str], setting: str, value: object
) -> None:
    argv = [f"{dash}{flags[0]}", *flags[1:]]
    assert getattr(settings_of(ran, *argv), setting) == value


def test_a_list_is_given_with_commas(ran: Ran) -> None:
    found = settings_of(ran, "-nat-prefixes", "fc00::/7,2001:db8::/32").nat_prefixes
    assert list(map(str, found)) == ["fc00::/7", "2001:db8::/32"]


def test_the_flags_of_docker_ipv6nat_work_together(ran: Ran) -> None:
    found = settings_of(ran, "-cleanup", "-debug", "-retry", "-endpoint", "unix:///x.sock")
    assert found == Settings(cleanup=True, debug=True, retry=True, endpoint="unix:///x.sock")


def test_flags_win_over_environment_and_that_over_the_file(
    ran: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('endpoint = "tcp://file:1"\ncert_path = "/file"\nretry = false\n')
    monkeypatch.setenv("DOCKER_HOST", "tcp://environment:1")
    monkeypatch.setenv("DOCKER_CERT_PATH", "/environment")
    found = settings_of(ran, "-config", str(file), "-endpoint", "tcp://flag:1")
    assert (found.endpoint, found.cert_path, found.retry) == ("tcp://flag:1", "/environment", False)


@pytest.mark.parametrize("value", ["1", "0", "false", "x"])
def test_any_docker_tls_verify_but_an_empty_one_means_yes(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", value)
    assert settings_of(ran).tls_verify


def test_an_empty_docker_tls_verify_means_no(ran: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "")
    assert not settings_of(ran).tls_verify


@pytest.mark.parametrize(
    "argv",
    [
        ["-retry=maybe"],
        ["-retry=FALSE!"],
        ["-cleanup=2"],
        ["-endpoint"],
        ["-config"],
        ["-unknown"],
        ["--unknown=1"],
        ["-deb"],
        ["-f"],
        ["-flush=maybe"],
        ["positional"],
        ["-retry", "maybe"],
    ],
)
def test_a_wrong_flag_ends_with_2_and_says_how(
    ran: Ran, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run(argv)
    assert caught.value.code == 2
    assert "usage: ipv6natd [flags]" in capsys.readouterr().err
    assert ran.served == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["-backend", "x"], "command line: backend = 'x': must be auto or nft or legacy"),
        (["-resync-interval", "5"], "command line: resync_interval = 5: must be a number"),
        (["-resync-interval", "x"], "command line: resync_interval = 'x': must be a number"),
        (["-endpoint", "nonsense"], "command line: endpoint = 'nonsense': must be unix:"),
        (["-nat-prefixes", "fd00::/8,x"], "command line: nat_prefixes = ['fd00::/8', 'x']"),
        (
            ["-endpoint", "http://h:1", "-tls-verify"],
            "command line: tls_verify = true and endpoint = 'http://h:1': http:// is never",
        ),
        (["-config", "/nonexistent/x.toml"], "/nonexistent/x.toml: there is no such file"),
    ],
)
def test_a_wrong_setting_ends_with_78_and_nothing_is_touched(
    ran: Ran, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    for more in ([], ["-flush"]):
        assert cli.run([*argv, *more]) == 78
        assert f"ipv6natd: {message}" in capsys.readouterr().err
    assert (ran.served, ran.flushed) == ([], [])


def test_a_wrong_file_ends_with_78(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ran: Ran
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("retry = 1\n")
    assert cli.run(["-config", str(file)]) == 78
    assert capsys.readouterr().err == f"ipv6natd: {file}: retry = 1: must be true or false\n"
    assert ran.served == []


@pytest.mark.parametrize("flag", ["-flush", "--flush"])
def test_flush_runs_no_daemon(ran: Ran, flag: str) -> None:
    assert cli.run([flag, "-backend", "legacy"]) == 0
    assert (ran.served, ran.flushed) == ([], [Settings(backend="legacy")])


@pytest.mark.parametrize("argv", [[], ["-flush"]])
def test_run_without_cap_net_admin_fails_with_a_message(
    ran: Ran, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    monkeypatch.setattr(cli, "_may_write_rules", lambda: False)
    assert cli.run(argv) == 1
    assert "needs root" in capsys.readouterr().err
    assert (ran.served, ran.flushed) == ([], [])


def test_a_firewall_that_fails_ends_with_1_and_its_words(
    ran: Ran, caplog: pytest.LogCaptureFixture
) -> None:
    ran.raises = FirewallError("there is no ip6tables")
    assert cli.run([]) == 1
    assert "there is no ip6tables" in caplog.text


def test_a_reload_reads_file_and_flags_again(ran: Ran, tmp_path: Path) -> None:
    """T13."""
    file = tmp_path / "mine.toml"
    file.write_text("resync_interval = 10\n")
    assert settings_of(ran, "-config", str(file), "-cleanup").resync_interval == 10
    file.write_text("resync_interval = 20\ncleanup = false\n")
    assert ran.reload is not None
    assert ran.reload() == Settings(resync_interval=20, cleanup=True)


@pytest.mark.parametrize("flag", ["-h", "-help", "--help"])
def test_help_names_every_key_and_ends_with_0(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run([flag])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    words = " ".join(text.split())
    for key in KEYS:
        assert f"-{key.name.replace('_', '-')}" in text
        assert f"{key.about[1:-1]} (default: " in words
    for word in ("-flush", "-version", "-config", "DOCKER_HOST", "78", "examples:"):
        assert word in text


@pytest.mark.parametrize("flag", ["-version", "--version"])
def test_version_ends_with_0(capsys: pytest.CaptureFixture[str], flag: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.run([flag])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"ipv6natd {__version__}\n"


def test_main_exits_with_the_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "run", lambda argv: len(argv))
    with pytest.raises(SystemExit) as caught:
        cli.main(["a", "b", "c"])
    assert caught.value.code == 3


def test_scrub_environment_keeps_only_the_variables_of_the_manual() -> None:
    page = (ROOT / "man" / "ipv6natd.8").read_text()
    section = page.partition(".Sh ENVIRONMENT")[2].partition(".Sh ")[0]
    lines = re.findall(r"^\.It Ev (.*)$", section, re.MULTILINE)
    assert {name for line in lines for name in line.split(" , ")} == cli.ENVIRONMENT
    others = ("PATH", "HTTP_PROXY", "REQUESTS_CA_BUNDLE", "DOCKER_CONFIG", "PYTHONPATH")
    environ = dict.fromkeys(others, "/x")
    cli.scrub_environment(environ)
    assert environ == {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    cli.scrub_environment(environ := dict.fromkeys(cli.ENVIRONMENT, "kept"))
    assert set(environ.values()) == {"kept", "/usr/sbin:/usr/bin:/sbin:/bin"}


@pytest.fixture
def status_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """The last status text for `systemctl status`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield lambda: systemd.recv(65536).decode()


def test_internal_error_is_the_last_log_line_and_the_status(
    ran: Ran, status_text: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    ran.raises = ExceptionGroup("of tasks", [ExceptionGroup("deeper", [KeyError("bridge\n")])])
    assert cli.run([]) == 1
    assert caplog.records[-1].levelno == logging.CRITICAL
    last = caplog.records[-1].getMessage()
    assert last.startswith("stopped by an internal error, please report it: KeyError: ")
    assert "Traceback" in caplog.text
    assert status_text() == "STATUS=" + " ".join(last.splitlines())


def test_cause_names_file_and_line() -> None:
    with pytest.raises(Exception, match="neither") as caught:
        cli._boolean("neither")
    assert re.search(r"neither true nor false at cli\.py:\d+$", cli._cause(caught.value))


def test_reason_of_a_failed_start_is_the_status(
    ran: Ran, status_text: Callable[[], str], tmp_path: Path
) -> None:
    (tmp_path / "wrong.toml").write_text("bakcend = 1\n")
    assert cli.run(["-config", str(tmp_path / "wrong.toml")]) == 78
    assert "unknown key 'bakcend'" in status_text()
    ran.raises = FirewallError("no ip6tables\nand more")
    assert cli.run([]) == 1
    assert status_text() == "STATUS=no ip6tables and more"
