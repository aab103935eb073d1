"""A booted host with a clone of this source on it, and the lines that README has one run there.

The lines are read from the pages and run as they stand: a page that names another command is a test
of another command.
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
    *("iproute2", "iptables", "nftables", "conntrack", "polkitd"),
)
"""What README wants to be there elsewhere, by Debian's names."""
AGREE = 'yes 2>/dev/null | "$@"'
"""What somebody in front of it says when apt and pacman ask."""


class Clone(Host):
    """A host on which somebody cloned this source."""

    def fetch_source(self) -> None:
        """Make the repository, and the clone of it that README begins with."""
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
        """What a script says that a plain user runs, from a login of theirs."""
        login = ("su", "--login", USER, "-c", f"set -e\n{script}")
        return self.run("sh", "-c", AGREE, "agree", *login, timeout=timeout)

    def as_root(self, lines: str, *, timeout: float = 300) -> str:
        """What lines of a page say that root runs in the clone, each only after the one before."""
        script = f"set -e; cd {HOME}/clone; export DEBIAN_FRONTEND=noninteractive\n{lines}"
        return self.run("sh", "-c", AGREE, "agree", "sh", "-c", script, timeout=timeout)

    def newer(self) -> None:
        """A newer version, where `git pull` gets it."""
        self.as_user(f"""
            cd {HOME}/origin
            sed -i '1s/)/+newer)/' packaging/deb/debian/changelog
            sed -i 's/^pkgrel=.*/pkgrel=2/' packaging/arch/PKGBUILD
            git commit -q -a -m newer
        """)


def blocks(page: Path, heading: str) -> list[str]:
    """The commands of a section, such as "## Install it", or of a page that has none."""
    section = page.read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^((?:    .*\n)+)", section, re.MULTILINE)
    return [re.sub(r"^    ", "", each, flags=re.MULTILINE) for each in found]


def inline(page: Path, paragraph: str, begin: str) -> str:
    """The command of a paragraph that begins like this, where it stands within a sentence."""
    (found,) = (each for each in page.read_text().split("\n\n") if each.startswith(paragraph))
    commands = re.findall(r"`([^`]+)`", re.sub(r"\s+", " ", found))
    (command,) = (each for each in commands if each.startswith(begin))
    return str(command)


ON_DEBIAN, ON_ARCH, ELSEWHERE = blocks(README, "## Install it")
"""What README has one run: a block more is one that somebody has to think of here."""
BY_HAND, MADE = blocks(UNINSTALL, "# Removing ipv6natd")
"""What takes out the rules, and what deletes the files that `make install` put in place."""
