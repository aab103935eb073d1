#!/bin/bash
# Lists the files of this source, with a NUL behind each: of a checkout what git knows, of an unpacked
# release all.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -e .git ]]; then
    # Root may well build what a plain user cloned, which git by itself refuses.
    git -c safe.directory="$PWD" ls-files -z
else
    find . -path ./dist -prune -o -type f -print0
fi
