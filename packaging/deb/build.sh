#!/bin/bash
# Builds the package for Debian from the files of this source tree, with tools of the distribution.
# `apt build-dep ./packaging/deb` installs the tools.
#
# usage: packaging/deb/build.sh [FOLDER [OPTION OF dpkg-buildpackage ...]]    (FOLDER is dist)
set -euo pipefail
cd "$(dirname "$0")/../.."

out=$(realpath -m "${1:-dist}")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

mkdir "$stage/ipv6natd"
packaging/sources.sh | tar -c --null --files-from=- | tar -x -C "$stage/ipv6natd"
cp -r packaging/deb/debian "$stage/ipv6natd/debian"
packaging/publisher.sh "$stage/ipv6natd"
(cd "$stage/ipv6natd" && dpkg-buildpackage --build=binary --no-sign "${@:2}")
mkdir -p "$out"
# Only one version stays in the folder, so that a pattern matches one file of each package.
rm -f "$out"/{,cockpit-}ipv6natd_*
cp "$stage"/{,cockpit-}ipv6natd_* "$out"
