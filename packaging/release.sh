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

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
tree=$stage/ipv6natd-$version
rm -rf "$out"
mkdir -p "$out"
git archive --format=tar --prefix="ipv6natd-$version/" "$tag" | tar -x -C "$stage"
"$tree/packaging/publisher.sh" "$tree"
# The same bytes from the same tag, in any folder and for any user.
tar -c --format=gnu --sort=name --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw,a-s \
    --mtime="@$(git log -1 --format=%ct "$tag")" -C "$stage" "ipv6natd-$version" |
    gzip --no-name >"$out/$tarball"
sum=$(sha256sum "$out/$tarball")
sum=${sum%% *}
url=$(sed -n "s/^url='\(.*\)'/\1/p" "$tree/packaging/arch/PKGBUILD")

cp "$tree/packaging/arch/ipv6natd.install" "$out"
# The PKGBUILD of a checkout has no URL and no sum, because its tarball changes.
sed -e "/^# A release names its sum /d" -e "s|^source=(\"|&$url/|" \
    -e "s|^sha256sums=.*|sha256sums=('$sum')|" "$tree/packaging/arch/PKGBUILD" >"$out/PKGBUILD"
sed "s|source = |&$url/|; s|sha256sums = .*|sha256sums = $sum|" \
    "$tree/packaging/arch/.SRCINFO" >"$out/.SRCINFO"
echo "$out: publish the tarball as $url/$tarball, and the other files in the AUR"
