"""Everything that checks ipv6natd, by what it needs.

unit and docs need Python alone; integration needs root, a bus and network namespaces; system needs
Docker engines and booted hosts; stress runs long. The harness is what they share.
"""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
"""The source tree."""
