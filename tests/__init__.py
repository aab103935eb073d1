"""The tests of ipv6natd, by their needs.

unit and docs need only Python; integration needs root, a bus and network namespaces; system needs
Docker engines and booted hosts; stress runs long. harness has the parts that all of them share.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The source tree."""
