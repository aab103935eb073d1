"""Properties of the sources that no linter checks."""

from __future__ import annotations

import ast

from tests.docs.sources import modules


def test_python_iptables_is_loaded_lazily() -> None:
    """The import of iptc loads kernel modules, and must not happen on a host of the nft variant."""
    offenders = [
        name
        for name, path in modules().items()
        if name != "firewall.libiptc"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom) and "iptc" in ast.unparse(node)
    ]
    assert offenders == []
