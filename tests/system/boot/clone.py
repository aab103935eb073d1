"""A booted host with a clone of this source, and the lines of README for it.

The lines are read from the pages and run unchanged, so a changed page changes the test.
"""

from __future__ import annotations

import re
from pathlib import Path

from tests import ROOT
from tests.harness import workshop
from tests.system.boot.host import Host

README = ROOT / "README.md"
UNINSTALL = ROOT / "docs/uninstall.md"
USER = "plain"
HOME = f"/home/{USER}"
LIBRARIES = (
    *("python3-docker", "python3-dbus-next", "python3-sdnotify", "python3-iptables"),
    *("iproute2", "iptables", "nftables", "polkitd"),
)
"""The packages that README requires on other distributions, with Debian's names."""
AGREE = 'yes 2>/dev/null | "$@"'
"""Answers yes to the questions of apt and pacman."""


class Clone(Host):
    """A host with a clone of this source."""

    def fetch_source(self) -> None:
        """Make the repository, and the clone that is the first step of README."""
        workshop.pack(self.shared / "source.tar")
        self.sh("DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install git")
        self.run("useradd", "--create-home", USER)
        self.as_user(f"""
            git config --global user.name Plain && git config --global user.email plain@localhost
            mkdir {HOME}/origin && cd {HOME}/origin && tar -xf /lab/source.tar
            git init -q && git add . && git commit -q -m 'what there is'
            git clone -q {HOME}/origin {HOME}/clone
        """)

    def as_user(self, script: str, *, timeout: float = 60) -> str:
        """The output of a script in a login shell of the plain user."""
        login = ("su", "--login", USER, "-c", f"set -e\n{script}")
        return self.run("sh", "-c", AGREE, "agree", *login, timeout=timeout)

    def as_root(self, lines: str, *, timeout: float = 300) -> str:
        """The output of the lines of a page, run by root in the clone; stops at the first error."""
        script = f"set -e; cd {HOME}/clone; export DEBIAN_FRONTEND=noninteractive\n{lines}"
        return self.run("sh", "-c", AGREE, "agree", "sh", "-c", script, timeout=timeout)

    def newer(self) -> None:
        """Commit a newer version to the origin of `git pull`."""
        self.as_user(f"""
            cd {HOME}/origin
            sed -i '1s/)/+newer)/' packaging/deb/debian/changelog
            sed -i 's/^pkgrel=.*/pkgrel=2/' packaging/arch/PKGBUILD
            git commit -q -a -m newer
        """)


def blocks(page: Path, heading: str) -> list[str]:
    """The commands of a section, such as "## Install it", or of a page without sections."""
    section = page.read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^((?:    .*\n)+)", section, re.MULTILINE)
    return [re.sub(r"^    ", "", each, flags=re.MULTILINE) for each in found]


def inline(page: Path, paragraph: str, begin: str) -> str:
    """The command with this beginning within the sentences of a paragraph."""
    (found,) = (each for each in page.read_text().split("\n\n") if each.startswith(paragraph))
    commands = re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", found))
    (command,) = (each for each in commands if each.startswith(begin))
    return str(command)


FROM_REPOSITORY, ON_DEBIAN, ON_ARCH, ELSEWHERE, SINGLE_FILE = blocks(README, "## Install it")
"""The command blocks of README. A new block in README needs a new name here. The test of the single
file is in tests/system/packets/test_single_file.py."""
MADE, BY_HAND = blocks(UNINSTALL, "# Removing ipv6natd")
"""The lines that remove the installation of `make install`, and the rules alone."""
