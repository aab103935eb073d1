#!/bin/bash
# Writes SHA256SUMS of a folder with a release, whose apt repository is in its subfolder apt. With
# SIGN_KEY, the name of a key of gpg, the sums and the repository are signed.
#
# usage: [SIGN_KEY=...] packaging/sums.sh FOLDER
set -euo pipefail
cd "${1:?name the folder of the release}"

key=${SIGN_KEY:-}
if [[ -n $key ]]; then
    gpg --batch --yes --armor --output ipv6natd.asc --export "$key"
    gpg --batch --yes --local-user "$key" --output apt/InRelease --clearsign apt/Release
fi
sums=$(find . -type f ! -name 'SHA256SUMS*' -printf '%P\n' | LC_ALL=C sort | xargs -d '\n' sha256sum)
echo "$sums" >SHA256SUMS
if [[ -n $key ]]; then
    gpg --batch --yes --local-user "$key" --armor --detach-sign SHA256SUMS
fi
