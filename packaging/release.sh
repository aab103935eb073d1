#!/bin/bash
# Makes the files of a release from its tag, such as v0.1.0:
#
#   ipv6natd-VERSION.tar.gz            the source
#   aur/                               PKGBUILD and .SRCINFO with the URL and the sum of the source
#   apt/                               the packages for Debian, in an apt repository
#   python/                            wheel and sdist, for pip and pipx
#   ipv6natd.pyz                       the single file
#   ipv6natd-image.tar.gz              the container image, for `docker load`
#   ipv6natd.cdx.json                  the libraries in the single file (CycloneDX)
#   SHA256SUMS                         the sums of all these files
#
# The image is made as root and needs the network, or BASE, a folder of packaging/container/base.sh.
# With IMAGE=no it is left out.
#
# With SIGN_KEY, the name of a key of gpg, the sums and the repository are signed.
#
# usage: packaging/release.sh TAG LIBRARIES SBOM [FOLDER]    (FOLDER is dist/release)
set -euo pipefail
cd "$(dirname "$0")/.."

tag=${1:?name a tag, such as v0.1.0}
libraries=$(realpath "${2:?name the folder of the libraries}")
sbom=$(realpath "${3:?name the list of the libraries}")
out=$(realpath -m "${4:-dist/release}")
version=${tag#v}
tarball=ipv6natd-$version.tar.gz

of() { # FILE: its content in the tag
    git show "$tag:$1"
}

# All files must have the version of the tag.
for place in "ipv6natd/__init__.py:__version__ = \"$version\"" \
    "packaging/deb/debian/changelog:ipv6natd ($version) " \
    "packaging/arch/PKGBUILD:pkgver=$version" \
    "packaging/arch/.SRCINFO:pkgver = $version" \
    "examples/compose.yaml:image: ipv6natd:$version" \
    "docs/container.md:ipv6natd:$version" \
    "CHANGELOG.md:## $version"; do
    # Not grep -q: it ends at the first match, and git then fails to write the rest.
    if ! of "${place%%:*}" | grep -F "${place#*:}" >/dev/null; then
        echo "$tag cannot be released: no '${place#*:}' in its ${place%%:*}" >&2
        exit 1
    fi
done
if [[ ${IMAGE:-yes} != no ]] && ((EUID)); then
    echo "the container image needs root; IMAGE=no leaves it out" >&2
    exit 1
fi
# The libraries are those of the files here.
if ! git diff --quiet "$tag"; then
    echo "$tag cannot be released: the files here differ; git checkout $tag" >&2
    exit 1
fi

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
tree=$stage/ipv6natd-$version
umask 022
rm -rf "$out"
mkdir -p "$out"/{apt,aur}
git archive --format=tar --prefix="ipv6natd-$version/" "$tag" | tar -x -C "$stage"
"$tree/packaging/publisher.sh" "$tree"

# The same bytes from the same tag, in any folder and for any user.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct "$tag")
export SOURCE_DATE_EPOCH
tar -c --sort=name --owner=0 --group=0 --numeric-owner --mode=go=rX,u+rw \
    --mtime="@$SOURCE_DATE_EPOCH" -C "$stage" "ipv6natd-$version" | gzip --no-name >"$out/$tarball"

sum=$(sha256sum "$out/$tarball")
sum=${sum%% *}
url=$(sed -n "s/^url='\(.*\)'/\1/p" "$tree/packaging/arch/PKGBUILD")
cp "$tree/packaging/arch/ipv6natd.install" "$out/aur"
# The PKGBUILD of a checkout has no URL and no sum, because its tarball changes.
sed -e "/^# A release names its sum /,/^# checkout\.$/d" -e "s|^source=(\"|&$url/|" \
    -e "s|^sha256sums=.*|sha256sums=('$sum')|" "$tree/packaging/arch/PKGBUILD" >"$out/aur/PKGBUILD"
sed "s|source = |&$url/|; s|sha256sums = .*|sha256sums = $sum|" \
    "$tree/packaging/arch/.SRCINFO" >"$out/aur/.SRCINFO"

"$tree/packaging/deb/build.sh" "$stage/deb"
cp "$stage"/deb/*.deb "$out/apt"
(cd "$tree" && "${PYTHON:-python3}" -m hatchling build -d "$out/python")
# hatchling makes files that only their owner can read.
chmod 644 "$out"/python/*
"$tree/packaging/pyz.sh" "$libraries" "$out"
cp "$sbom" "$out/ipv6natd.cdx.json"
if [[ ${IMAGE:-yes} != no ]]; then
    "$tree/packaging/container/build.sh" "$out"/apt/ipv6natd_*_all.deb "$stage/image.tar"
    gzip --no-name <"$stage/image.tar" >"$out/ipv6natd-image.tar.gz"
fi

"$tree/packaging/apt.sh" "$out/apt"
"$tree/packaging/sums.sh" "$out"
echo "$out: publish $tarball as $url/$tarball, and the files in aur/ in the AUR"
