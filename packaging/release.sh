#!/bin/bash
# Makes the files of a release from its tag, such as v0.1.0: the tarball, and for the AUR a PKGBUILD
# and a .SRCINFO with the URL and the sum of the tarball.
#
# usage: packaging/release.sh TAG [FOLDER]    (FOLDER is dist/release)
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:?name a tag, such as v0.1.0}
version=${tag#v}
out=$(realpath -m "${2:-dist/release}")
tarball=ipv6natd-$version.tar.gz

of() { # FILE: its content in the tag
    git show "$tag:$1"
}

# All files must have the version of the tag.
for place in "ipv6natd/__init__.py:__version__ = \"$version\"" \
    "packaging/deb/debian/changelog:ipv6natd ($version) " \
    "packaging/arch/PKGBUILD:pkgver=$version" \
    "CHANGELOG.md:## $version"; do
    if ! of "${place%%:*}" | grep -qF "${place#*:}"; then
        echo "$tag cannot be released: no '${place#*:}' in its ${place%%:*}" >&2
        exit 1
    fi
done

rm -rf "$out"
mkdir -p "$out"
git archive --format=tar --prefix="ipv6natd-$version/" "$tag" | gzip --no-name >"$out/$tarball"
sum=$(sha256sum "$out/$tarball")
sum=${sum%% *}
url=$(of packaging/arch/PKGBUILD | sed -n "s/^url='\(.*\)'/\1/p")

of packaging/arch/ipv6natd.install >"$out/ipv6natd.install"
# The PKGBUILD of a checkout has no URL and no sum, because its tarball changes.
of packaging/arch/PKGBUILD |
    sed -e "/^# A release names its sum /d" -e "s|^source=(\"|&$url/|" \
        -e "s|^sha256sums=.*|sha256sums=('$sum')|" >"$out/PKGBUILD"
of packaging/arch/.SRCINFO |
    sed "s|source = |&$url/|; s|sha256sums = .*|sha256sums = $sum|" >"$out/.SRCINFO"
echo "$out: publish the tarball as $url/$tarball, and the other files in the AUR"
