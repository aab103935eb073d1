#!/bin/bash
# Makes what is published of a release from its tag, v0.1.0 say: the tarball, and beside it what the AUR
# takes, a PKGBUILD and a .SRCINFO that name where the tarball will be and its sum.
#
# usage: packaging/release.sh TAG [FOLDER]    (FOLDER is dist/release)
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:?a tag is wanted, such as v0.1.0}
version=${tag#v}
out=$(realpath -m "${2:-dist/release}")
tarball=ipv6natd-$version.tar.gz

of() { # FILE, as it is in the tag
    git show "$tag:$1"
}

# The same number everywhere: nothing is published that calls itself by another.
for place in "ipv6natd/__init__.py:__version__ = \"$version\"" \
    "packaging/deb/debian/changelog:ipv6natd ($version) " \
    "packaging/arch/PKGBUILD:pkgver=$version" \
    "CHANGELOG.md:## $version"; do
    if ! of "${place%%:*}" | grep -qF "${place#*:}"; then
        echo "$tag is not to be released: no '${place#*:}' in its ${place%%:*}" >&2
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
# In a checkout the tarball has no place, and no sum that would last.
of packaging/arch/PKGBUILD |
    sed -e "/^# A release names its sum /d" -e "s|^source=(\"|&$url/|" \
        -e "s|^sha256sums=.*|sha256sums=('$sum')|" >"$out/PKGBUILD"
of packaging/arch/.SRCINFO |
    sed "s|source = |&$url/|; s|sha256sums = .*|sha256sums = $sum|" >"$out/.SRCINFO"
echo "$out: the tarball is to be published as $url/$tarball, the other files in the AUR"
