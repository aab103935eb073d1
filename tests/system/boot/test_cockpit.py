"""The page for Cockpit on a booted host, as its package installs it."""

from __future__ import annotations

import base64
import json
import ssl
from typing import Any
from urllib.request import HTTPCookieProcessor, HTTPSHandler, Request, build_opener

import pytest

from tests import harness
from tests.harness.sandbox import HOST
from tests.system.boot.host import Host

USER, PASSWORD = "admin", "lab"


class Session:
    """A login to Cockpit from the client, with its cookies."""

    def __init__(self, host: Host) -> None:
        self._client = host.sandbox.client
        # The certificate is of the host itself.
        trust = ssl._create_unverified_context()
        self._opener = build_opener(HTTPSHandler(context=trust), HTTPCookieProcessor())

    def get(self, path: str, **headers: str) -> Any:
        """The text of an answer; the error without one."""
        request = Request(f"https://[{HOST}]:9090/cockpit/{path}", headers=headers)

        def fetch() -> str:
            with self._opener.open(request, timeout=20) as answer:
                return str(answer.read().decode())

        try:
            return self._client.within(fetch)
        except OSError as error:
            return error


@pytest.mark.slow
def test_page_is_there_after_the_installation_for_a_user_who_logs_in(host: Host) -> None:
    if host.suite != "trixie":
        pytest.skip("only the tree of Debian 13 has the packages of Cockpit")
    names = "cockpit-ws cockpit-system"
    host.sh(
        "DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "
        f"/lab/cockpit-ipv6natd_*.deb {names}",
        timeout=180,
    )
    host.sh(f"useradd --uid=2000 --create-home {USER}; echo {USER}:{PASSWORD} | chpasswd")
    host.sh("systemctl start cockpit.socket")
    try:
        assert "ipv6natd" in host.run("cockpit-bridge", "--packages")
        session = Session(host)
        word = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        login = harness.until(
            lambda: session.get("login", Authorization=f"Basic {word}"),
            lambda answer: isinstance(answer, str),
        )
        assert "csrf-token" in json.loads(login)
        page = session.get("@localhost/ipv6natd/index.html")
        assert "<title translate>IPv6 NAT for Docker</title>" in page
        for file in ("ipv6natd.js", "ipv6natd.css", "po.js"):
            assert isinstance(session.get(f"@localhost/ipv6natd/{file}"), str)
    finally:
        host.sh("systemctl stop cockpit.socket cockpit")
        host.sh(f"loginctl terminate-user {USER}; userdel --force --remove {USER}", check=False)
        host.sh(
            f"DEBIAN_FRONTEND=noninteractive apt-get -q -y purge --autoremove {names} "
            "cockpit-bridge cockpit-ipv6natd",
            timeout=120,
        )
