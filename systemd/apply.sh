#!/bin/sh
# Applies the installed files of modules-load.d, tmpfiles.d and the catalog without a reboot. The
# installation runs this script as root. Without a running systemd the script does nothing. The
# script does not change forwarding: the service switches it on when its rules are in force.
set -u
[ -d /run/systemd/system ] || exit 0
umask 022

/usr/lib/systemd/systemd-modules-load ipv6natd.conf
systemd-tmpfiles --create ipv6natd.conf
journalctl --update-catalog
exit 0
