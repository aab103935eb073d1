#!/bin/bash
# Builds the image of ipv6natd as root, without a registry: a minimal Debian with the package. `docker
# load` and `podman load` read the file.
#
# usage: [BASE=FOLDER] packaging/container/build.sh PACKAGE [FILE]
#
# FILE is dist/ipv6natd-image.tar. With a folder of base.sh, the script needs no network.
set -euo pipefail
package=$(realpath "${1:?name the package for Debian}")
cd "$(dirname "$0")/../.."

file=$(realpath -m "${2:-dist/ipv6natd-image.tar}")
tag=ipv6natd:$(dpkg-deb --field "$package" Version | tr '+~' '--')
epoch=${SOURCE_DATE_EPOCH:-$(stat --format=%Y "$package")}
stage=$(mktemp -d)
trap 'rm -rf --one-file-system "$stage"' EXIT
base=${BASE:-$stage/base}
root=$stage/root

logged() { # COMMAND ...: its output only if it fails
    "$@" >"$stage/log" 2>&1 || { tail -n 20 "$stage/log" >&2 && exit 1; }
}

if [[ ! -d $base ]]; then
    logged packaging/container/base.sh "$base"
fi
cp -a "$base" "$root"
mkdir "$root/root/ipv6natd"
cp "$package" packaging/container/* "$root/root/ipv6natd"
# In namespaces of its own, so that no process and no mount remains.
# shellcheck disable=SC2016
logged unshare --mount --pid --fork --kill-child sh -euc '
    mount -t proc proc "$1/proc"
    mount --bind /dev "$1/dev"
    exec chroot "$1" /root/ipv6natd/install.sh' install "$root"
rm -r "$root/root/ipv6natd"
tar --sort=name --numeric-owner --mtime="@$epoch" --clamp-mtime -C "$root" -cf "$stage/layer.tar" .

# The format of `docker save`: a manifest, a configuration, one layer. Times are nanoseconds.
sum=$(sha256sum "$stage/layer.tar")
cat >"$stage/config.json" <<END
{"architecture": "$(dpkg --print-architecture)", "os": "linux",
 "created": "$(date --utc --date="@$epoch" +%Y-%m-%dT%H:%M:%SZ)",
 "config": {"Entrypoint": ["/usr/lib/ipv6natd/container"],
  "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
   "IPV6NATD_CONTAINER=1"],
  "Healthcheck": {"Test": ["CMD", "ipv6natctl", "status"],
   "Interval": 30000000000, "Timeout": 10000000000, "StartPeriod": 30000000000}},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:${sum%% *}"]}}
END
echo "[{\"Config\": \"config.json\", \"RepoTags\": [\"$tag\"], \"Layers\": [\"layer.tar\"]}]" \
    >"$stage/manifest.json"
mkdir -p "$(dirname "$file")"
tar --owner=0 --group=0 --mtime="@$epoch" -C "$stage" -cf "$file" \
    manifest.json config.json layer.tar
echo "$file: $tag"
