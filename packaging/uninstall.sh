#!/bin/bash
# Stops the service, removes its rules, and deletes the files of packaging/install.sh --with-python.
# The settings and the state stay, as with `apt remove`.
#
# usage: [DESTDIR=...] [PREFIX=/usr] packaging/uninstall.sh
#
# With DESTDIR the script only deletes files. The script deletes nothing if ipv6natd in PREFIX comes
# from somewhere else.
set -euo pipefail
cd "$(dirname "$0")/.."

destdir=${DESTDIR:-}
prefix=${PREFIX:-/usr}
library=$prefix/lib/ipv6natd
command=$destdir$prefix/bin/ipv6natd

# The command of a package does not name this folder.
if ! grep -qsF "\"$library\"" "$command"; then
    echo "$command is not from \`make install\`; name its prefix, such as PREFIX=/usr" >&2
    exit 1
fi

if [[ -z $destdir ]]; then
    # The service stops first, because it would write its rules again.
    if [[ -d /run/systemd/system ]]; then
        systemctl disable --now ipv6natd.service
    fi
    # Independent of the settings, which may be wrong.
    "$command" -flush -config /dev/null ||
        echo "rules may remain; see ip6tables -S and ip6tables -t nat -S" >&2
fi

# The list of installed files is the content of a new installation. No other user can write to it.
listed=$(mktemp -d)
trap 'rm -rf "$listed"' EXIT
DESTDIR=$listed PREFIX=$prefix packaging/install.sh --with-python
(cd "$listed" && find . -type f ! -path './etc/ipv6natd/*' -print0) |
    (cd "$destdir/" && xargs -0 rm -f --)
# With files of other versions, and with bytecode.
rm -rf "$destdir$library" "$destdir$prefix/share/doc/ipv6natd" "$destdir$prefix/share/cockpit/ipv6natd"

if [[ -z $destdir ]]; then
    if [[ -d /run/systemd/system ]]; then
        systemctl daemon-reload
        systemctl reload dbus || true
    fi
    echo "The settings in /etc/ipv6natd and the state in /var/lib/ipv6natd stay."
fi
