#!/bin/bash
# Makes a folder with a minimal Debian and the packages that ipv6natd needs in a container, as root.
#
# usage: packaging/container/base.sh FOLDER
set -euo pipefail
folder=${1:?name a folder}

packages=(
    dbus-daemon iproute2 iptables nftables procps
    python3-dbus-next python3-docker python3-requests python3-sdnotify
)
# Where others can write, they could know another name, and put links into the folder.
part=$(mktemp -d "$folder.XXXXXXXXXX")
trap 'rm -rf --one-file-system "$part"' EXIT
chmod 0755 "$part" # the root of the container
# In namespaces of its own: an interrupted debootstrap leaves /proc mounted.
IFS=,
unshare --mount --pid --fork --kill-child --mount-proc \
    debootstrap --variant=minbase --include="${packages[*]}" trixie "$part" >&2
find "$part/usr/share/doc" -type f ! -name copyright -delete
find "$part" -name __pycache__ -type d -prune -exec rm -rf {} +
rm -rf "$part"/usr/share/{man,locale,info,lintian}/* "$part"/var/{lib/apt/lists,cache,log}/* \
    "${part:?}"/dev/* "$part/etc/resolv.conf"
mv --no-target-directory "$part" "$folder"
