#!/bin/bash
# Builds the package for Arch from this source, as it stands; makepkg will not have it done by root.
#
# usage: packaging/arch/build.sh [FOLDER [OPTION OF makepkg ...]]    (FOLDER is dist)
set -euo pipefail
cd "$(dirname "$0")/../.."

out=$(realpath -m "${1:-dist}")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

cp packaging/arch/{PKGBUILD,ipv6natd.install} "$stage"
version=$(sed -n 's/^pkgver=//p' packaging/arch/PKGBUILD)
packaging/sources.sh |
    tar -czf "$stage/ipv6natd-$version.tar.gz" --null --files-from=- \
        --transform="s|^\(\./\)\?|ipv6natd-$version/|"
mkdir -p "$out"
# One version at a time, so that a pattern names one package; and makepkg replaces none by itself.
rm -f "$out"/ipv6natd-*.pkg.tar*
(cd "$stage" && PKGDEST=$out makepkg "${@:2}")
