#!/bin/bash
# Builds the package for Arch from the files of this source tree. makepkg refuses to run as root.
#
# usage: packaging/arch/build.sh [FOLDER [OPTION OF makepkg ...]]    (FOLDER is dist)
set -euo pipefail
cd "$(dirname "$0")/../.."

out=$(realpath -m "${1:-dist}")
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT

cp packaging/arch/{PKGBUILD,ipv6natd.install} "$stage"
version=$(sed -n 's/^pkgver=//p' packaging/arch/PKGBUILD)
mkdir "$stage/ipv6natd-$version"
packaging/sources.sh | tar -c --null --files-from=- | tar -x -C "$stage/ipv6natd-$version"
packaging/publisher.sh "$stage"
tar -czf "$stage/ipv6natd-$version.tar.gz" -C "$stage" "ipv6natd-$version"
rm -r "${stage:?}/ipv6natd-$version"
mkdir -p "$out"
# Only one version stays in the folder, so that a pattern matches one package. makepkg replaces no
# file.
rm -f "$out"/ipv6natd-*.pkg.tar*
(cd "$stage" && PKGDEST=$out makepkg "${@:2}")
