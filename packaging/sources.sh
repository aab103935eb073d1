#!/bin/bash
# Lists the files of this source tree, each with a NUL at its end. In a checkout these are the files
# that git tracks, in an unpacked release all files.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -e .git ]]; then
    # Root may build in the clone of another user. By default, git refuses this.
    git -c safe.directory="$PWD" ls-files -z
else
    find . -path ./dist -prune -o -type f -print0
fi
