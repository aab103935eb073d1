#!/bin/sh
# Installs ipv6natd into the root of an image of Debian: the package and the files beside this
# script. It needs no network if the dependencies are installed already.
set -eu
cd "$(dirname "$0")"

# A container needs no manual pages and no second copy of the messages.
cat >/etc/dpkg/dpkg.cfg.d/ipv6natd <<'END'
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-exclude=/usr/share/locale/*
END
DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install \
    ./ipv6natd_*_all.deb nftables dbus-daemon
install -D -m 644 bus.conf /usr/share/ipv6natd/bus.conf
install -D -m 755 ipv6natd-container /usr/lib/ipv6natd/container
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/* /var/lib/dpkg/*-old
find / -xdev -name __pycache__ -type d -prune -exec rm -rf {} +
