#!/bin/sh
# Brings the files that ipv6natd installs into force now, without a reboot: modules-load.d,
# tmpfiles.d, catalog. Installations call it, as root; it does nothing where systemd does not run.
# Forwarding is no part of this: the service switches it on, once its rules are in force.
set -u
[ -d /run/systemd/system ] || exit 0
umask 022

/usr/lib/systemd/systemd-modules-load ipv6natd.conf
systemd-tmpfiles --create ipv6natd.conf
journalctl --update-catalog
exit 0
