#!/bin/bash
# Makes an apt repository of the packages in a folder, without subfolders:
#
#   deb [trusted=yes] file:/srv/ipv6natd ./
#
# usage: packaging/apt.sh FOLDER    (with SOURCE_DATE_EPOCH for a date other than now)
set -euo pipefail
cd "${1:?name the folder of the packages}"

dpkg-scanpackages --multiversion . >Packages
gzip --force --keep --no-name --best Packages
# apt reads the sums of the lists here.
{
    echo "Origin: ipv6natd"
    echo "Date: $(date --utc --rfc-email --date="@${SOURCE_DATE_EPOCH:-$(date +%s)}")"
    echo SHA256:
    for list in Packages Packages.gz; do
        sum=$(sha256sum $list)
        echo " ${sum%% *} $(stat --format=%s $list) $list"
    done
} >Release
