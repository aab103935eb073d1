"""Files of other programs that contain our rules."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from ipv6natd.firewall.restore import RestoreFirewall
from ipv6natd.host.rule_files import files_with_our_rules
from ipv6natd.model import Policy
from ipv6natd.netfilter.diff import rewrite_tables
from ipv6natd.netfilter.rules import Backend
from ipv6natd.policy.desired import desired
from ipv6natd.policy.ruleset import ruleset
from ipv6natd.sync.applier import remove_all
from tests.harness.build import container, network, snapshot
from tests.harness.needs import need

X = network(name="x")
SAVING = [
    (Backend.NFT, "ip6tables-nft-save"),
    (Backend.NFT, "nft list ruleset"),
    (Backend.NFT, "nft -j list ruleset"),
    (Backend.LEGACY, "ip6tables-legacy-save"),
]


@pytest.mark.usefixtures("namespace", "xtables_lock")
@pytest.mark.parametrize(("backend", "command"), SAVING, ids=[words for _, words in SAVING])
def test_saved_rules_are_named_until_they_are_saved_without_ours(
    backend: Backend, command: str, tmp_path: Path
) -> None:
    need(*{command.split()[0], f"ip6tables-{backend}-restore"})
    firewall = RestoreFirewall(backend)
    facts = snapshot(X, container(name="web", on=[X], ports=["8080:80"]))
    rules = ruleset(desired(facts, Policy()))
    firewall.write_all(rewrite_tables(firewall.read(), rules))
    other = ["-A", "FORWARD", "-s", "fd00:9::9", "-j", "DROP"]
    subprocess.run([f"ip6tables-{backend}", *other], check=True)
    file = tmp_path / "rules.v6"
    file.write_text(subprocess.check_output(command.split(), text=True))
    (found,) = files_with_our_rules([file])
    assert found.startswith(f"{file} contains rules of ipv6natd, which come back at the next boot")
    remove_all(firewall)
    saved = subprocess.check_output(command.split(), text=True)
    assert "fd00:9::9" in saved
    file.write_text(saved)
    assert list(files_with_our_rules([file])) == []


def test_file_that_cannot_be_read_may_contain_rules(tmp_path: Path) -> None:
    (tmp_path / "rules.v6").mkdir()
    found = list(files_with_our_rules([tmp_path / "rules.v6", tmp_path / "none"]))
    reason = "which may contain rules of ipv6natd: Is a directory"
    assert found == [f"cannot read {tmp_path}/rules.v6, {reason}"]
