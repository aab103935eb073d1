#!/bin/bash
# Installs what `make` needs from the distribution's archive, and only what is missing: with
# everything there it touches neither the network nor the machine.
#
# usage: tests/install.sh venv|lab|desk|rivals|cockpit|browser|compose|trees|bench|newest ...
set -euo pipefail

# What to look for, a command, a file or a Python module, and the package that has it. By what is
# there and not by package: an engine from elsewhere would be thrown out by the distribution's.
venv=(
    module:ensurepip:python3-venv
    module:docker:python3-docker
    module:dbus_next:python3-dbus-next
    module:sdnotify:python3-sdnotify
    module:iptc:python3-iptables
)
lab=(
    command:dockerd:docker.io
    command:ip6tables-save:iptables
    command:nft:nftables
    command:ip:iproute2
    command:conntrack:conntrack
    command:busybox:busybox-static
    command:dbus-daemon:dbus
    command:busctl:systemd
    file:/usr/lib/polkit-1/polkitd:polkitd
    command:sysctl:procps
    command:nsenter:util-linux
    command:openssl:openssl
    command:strace:strace
)
# What manual pages, completions and examples are tried with; no demo needs it.
desk=(
    command:mandoc:mandoc
    command:gpg:gpg
    command:zsh:zsh
    command:fish:fish
    module:yaml:python3-yaml
    command:systemd-nspawn:systemd-container
)
# Programs that ipv6natd has to live beside. Only tests use them, each in a network namespace; on
# this machine they must not start, now or after a reboot.
rivals=(
    command:ufw:ufw
    command:firewall-cmd:firewalld
    command:haproxy:haproxy
    command:podman:podman
)
# The page for Cockpit: its code, and the bridge between it and the bus.
cockpit=(
    command:node:nodejs
    command:cockpit-bridge:cockpit-bridge
)
# The page in a browser.
browser=(
    file:/usr/lib/cockpit/cockpit-ws:cockpit-ws
    command:chromium:chromium
    command:chromedriver:chromium-driver
    module:selenium:python3-selenium
)
# What starts examples/compose.yaml.
compose=(
    command:docker-compose:docker-compose
)
# Other suites of Debian (tests/harness/tree.py asks, where one is to be made). The keyring is what
# their signatures are checked with; debootstrap only suggests it.
trees=(
    command:debootstrap:debootstrap
    file:/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
)

# What draws the plots of `make bench`, and nothing else.
bench=(
    module:matplotlib:python3-matplotlib
)
# What compiles python-iptables, which PyPI has as source only.
newest=(
    command:gcc:gcc
    file:/usr/include/stdio.h:libc6-dev
)

python=${PYTHON:-/usr/bin/python3}
export PATH=/usr/sbin:/usr/bin:/sbin:/bin

missing=()
for group in "$@"; do
    declare -n wanted=$group
    for line in "${wanted[@]}"; do
        IFS=: read -r kind name package <<<"$line"
        case $kind in
            command) command -v "$name" >/dev/null || missing+=("$package") ;;
            file) [[ -e $name ]] || missing+=("$package") ;;
            module) "$python" -c "import importlib.util, sys
sys.exit(importlib.util.find_spec('$name') is None)" 2>/dev/null || missing+=("$package") ;;
        esac
    done
done
((${#missing[@]})) || exit 0

if ((EUID)); then
    echo "Missing: ${missing[*]}. Run this as root, or install them." >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "Missing: ${missing[*]} (Debian's names), and there is no apt-get to install them." >&2
    exit 1
fi

# One at a time: two of us would restore each other's policy-rc.d.
exec 9<"$0"
flock 9

log=$(mktemp)
policy=/usr/sbin/policy-rc.d
saved=$policy.before-ipv6natd
restore() {
    rm -f "$policy" "$log"
    if [[ -e $saved ]]; then mv "$saved" "$policy"; fi
}
trap restore EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
# Nothing that is installed for a test may start a service on this machine.
if [[ -e $policy && ! -e $saved ]]; then mv "$policy" "$saved"; fi
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 "$@" >>"$log" 2>&1
}
install() {
    # No `needrestart` after it, which would restart services of the machine's.
    NEEDRESTART_SUSPEND=1 apt --no-install-recommends install "${missing[@]}"
}
echo "Installing ${missing[*]} (starts no service) ..."
# The archive moves on; the machine's lists may be older than it, or not there at all.
install || { apt update && install; } || {
    tail -n 20 "$log" >&2
    echo "Could not install ${missing[*]}." >&2
    exit 1
}
for package in "${missing[@]}"; do
    case $package in
        ufw | firewalld | haproxy) systemctl --root=/ --quiet disable "$package" ;;
        cockpit-ws) systemctl --root=/ --quiet disable cockpit.socket ;;
        podman)
            systemctl --root=/ --quiet disable podman.service podman.socket podman-restart.service \
                podman-auto-update.service podman-auto-update.timer
            ;;
    esac
done
