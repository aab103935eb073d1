#!/bin/sh
# Brings the files that ipv6natd installs into force now, without a reboot: modules-load.d, sysctl.d,
# tmpfiles.d, catalog. Installations call it, as root; it does nothing where systemd does not run.
set -u
[ -d /run/systemd/system ] || exit 0
umask 022

written=/etc/sysctl.d/60-ipv6natd-accept-ra.conf

# An interface that has its default route from router advertisements (accept_ra=1) stops listening
# to them once the host forwards, unless accept_ra is 2. What an administrator set to 0 stays so.
keep_default_routes() {
    ip -6 -o route show default proto ra | grep -o ' dev [^ ]*' | sort -u |
        while read -r _ interface; do
            # sysctl.d takes some names for patterns, and echo a backslash for more than it is.
            case $interface in
                [!A-Za-z0-9_]* | *[!A-Za-z0-9_.@-]*)
                    printf 'ipv6natd: %s cannot be kept: its name is no plain word\n' "$interface"
                    continue
                    ;;
            esac
            key=net/ipv6/conf/$interface/accept_ra
            [ "$(cat "/proc/sys/$key")" = 1 ] || continue
            if [ ! -e "$written" ]; then
                mkdir -p /etc/sysctl.d
                echo "# Written when ipv6natd was installed: these have their default route from
# router advertisements, which a host that forwards accepts only with 2." >"$written"
            fi
            echo "$key = 2" >>"$written"
            echo 2 >"/proc/sys/$key"
            echo "ipv6natd: the default route of $interface comes from router advertisements, which" \
                "a host that forwards accepts only with accept_ra=2: set, and kept in $written"
        done
}

# The administrator's own file of this name wins, and a link to /dev/null switches ours off.
own=/etc/sysctl.d/60-ipv6natd.conf
if [ ! -e "$own" ] || [ -s "$own" ]; then
    keep_default_routes
fi
/usr/lib/systemd/systemd-modules-load ipv6natd.conf
/usr/lib/systemd/systemd-sysctl 60-ipv6natd.conf
systemd-tmpfiles --create ipv6natd.conf
journalctl --update-catalog
exit 0
