#!/bin/bash
# Installs all files of ipv6natd except its Python package. This is the only list of these files,
# for all distributions.
#
# The examples are documentation: no program reads them in share/doc.
#
# usage: [DESTDIR=...] [PREFIX=/usr] packaging/install.sh [--with-python]
#
# With --with-python the script also installs the Python package, into lib/ipv6natd. The packages
# for Debian and Arch do not use this option, because their tools install the Python package. ZSHDIR
# is the directory of zsh's completions, which differs between Debian and Arch.
set -euo pipefail
cd "$(dirname "$0")/.."
# The umask of root may let other users write the files, or keep them from reading.
umask 022

destdir=${DESTDIR:-}
prefix=${PREFIX:-/usr}
python=${PYTHON:-python3}
zsh=${ZSHDIR:-$prefix/share/zsh/site-functions}
# The bus reads policies only in /usr and /etc.
policy=$([[ $prefix == /usr ]] && echo /usr/share || echo /etc)/dbus-1/system.d

put() { # MODE SOURCE DESTINATION
    install -D -m "$1" "$2" "$destdir$3"
}

put 755 systemd/apply.sh "$prefix/lib/ipv6natd/apply"
put 644 systemd/ipv6natd.service "$prefix/lib/systemd/system/ipv6natd.service"
put 644 systemd/preset.conf "$prefix/lib/systemd/system-preset/80-ipv6natd.preset"
put 644 systemd/modules-load.conf "$prefix/lib/modules-load.d/ipv6natd.conf"
put 644 systemd/tmpfiles.conf "$prefix/lib/tmpfiles.d/ipv6natd.conf"
put 644 systemd/ipv6natd.catalog "$prefix/lib/systemd/catalog/ipv6natd.catalog"
put 644 dbus/org.ipv6natd1.conf "$policy/org.ipv6natd1.conf"
put 644 dbus/org.ipv6natd1.xml "$prefix/share/dbus-1/interfaces/org.ipv6natd1.xml"
put 644 dbus/org.ipv6natd1.policy "$prefix/share/polkit-1/actions/org.ipv6natd1.policy"
put 644 completions/ipv6natctl.bash "$prefix/share/bash-completion/completions/ipv6natctl"
put 644 completions/_ipv6natctl "$zsh/_ipv6natctl"
put 644 completions/ipv6natctl.fish "$prefix/share/fish/vendor_completions.d/ipv6natctl.fish"
# Only Cockpit reads this folder.
for file in cockpit/*; do
    put 644 "$file" "$prefix/share/cockpit/ipv6natd/${file##*/}"
done
for page in man/*; do
    put 644 "$page" "$prefix/share/man/man${page##*.}/${page##*/}"
done
for example in examples/*; do
    put 644 "$example" "$prefix/share/doc/ipv6natd/examples/${example##*/}"
done

# With the paths of this tree, so that their links lead to each other.
find README.md CHANGELOG.md CONTRIBUTING.md SECURITY.md docs -type f -print | while read -r page; do
    put 644 "$page" "$prefix/share/doc/ipv6natd/$page"
done

sed -i "s|/usr/bin/ipv6nat|$prefix/bin/ipv6nat|" \
    "$destdir$prefix/lib/systemd/system/ipv6natd.service"

# With this file, earlier versions switched forwarding on at every boot, before any rule.
rm -f "$destdir$prefix/lib/sysctl.d/60-ipv6natd.conf"

install -d -m 755 "$destdir/etc/ipv6natd/conf.d"
# An existing configuration belongs to the administrator.
config=$destdir/etc/ipv6natd/ipv6natd.toml
if [[ ! -e $config ]]; then
    "$python" -B -c 'from ipv6natd.config import example; print(example(), end="")' >"$config"
    chmod 644 "$config"
fi

if [[ ${1:-} == --with-python ]]; then
    library=$prefix/lib/ipv6natd
    (cd ipv6natd && find . -name '*.py' -printf '%P\n') | while read -r file; do
        put 644 "ipv6natd/$file" "$library/ipv6natd/$file"
    done
    for interface in dbus/*.xml; do
        put 644 "$interface" "$library/ipv6natd/${interface##*/}"
    done
    for command in ipv6natd:cli ipv6natctl:ctl; do
        put 755 /dev/null "$prefix/bin/${command%:*}"
        cat >"$destdir$prefix/bin/${command%:*}" <<END
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "$library")
from ipv6natd.${command#*:} import main

main()
END
    done
fi

# A package runs these commands in its own scripts.
if [[ -z $destdir ]]; then
    systemctl daemon-reload || true
    "$prefix/lib/ipv6natd/apply"
    systemctl reload dbus || true
fi
