#!/bin/bash
# Makes ipv6natd.pyz: ipv6natd and its libraries in one file, which runs with any Python from 3.11
# on. It needs no package of a Python library. Compiled libraries cannot be in such a file: without
# python-iptables, the restore tool writes legacy tables.
#
# usage: packaging/pyz.sh LIBRARIES [FOLDER]    (a folder with the libraries; FOLDER is dist)
set -euo pipefail
libraries=$(realpath "${1:?name the folder of the libraries}")
out=$(realpath -m "${2:-dist}")
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
epoch=$(date -d "$(sed -n 's/^ -- .*>  //p' packaging/deb/debian/changelog | head -n 1)" +%s)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
umask 022

(cd "$libraries" && find . \( -name '*.py' -o -name '*.pem' -o -path '*.dist-info/*' \) -type f \
    ! -path './iptc/*' ! -ipath './python_iptables*' ! -path './bin/*' ! -name RECORD \
    ! -name direct_url.json -exec cp --parents -t "$work" {} +)
find ipv6natd -name '*.py' -exec cp --parents --target-directory="$work" {} +
cp LICENSE "$work"
cp dbus/*.xml "$work/ipv6natd"
cat >"$work/__main__.py" <<'END'
"""Runs ipv6natd, or ipv6natctl if the file has this name."""

import sys

if sys.version_info < (3, 11):
    sys.exit("ipv6natd needs Python 3.11 or newer")

from pathlib import Path

if Path(sys.argv[0]).name.startswith("ipv6natctl"):
    from ipv6natd.ctl import main
else:
    from ipv6natd.cli import main

main()
END
find "$work" -exec touch --no-dereference --date="@$epoch" {} +
mkdir -p "$out"
# Not by `python3 -m zipapp`: before Python 3.12 its order of the files is that of the file system.
TZ=UTC "$python" - "$work" "$out/ipv6natd.pyz" <<'END'
import sys
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

work, out = map(Path, sys.argv[1:])
with out.open("wb") as file:
    # Not the first python3 in the path: root runs this file.
    file.write(b"#!/usr/bin/python3 -I\n")
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        for path in sorted(work.rglob("*"), key=str):
            archive.write(path, path.relative_to(work))
END
chmod 755 "$out/ipv6natd.pyz"
echo "$out/ipv6natd.pyz"
