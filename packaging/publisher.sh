#!/bin/bash
# The addresses of the publisher. A publisher fills in these three values before the first release.
# The packages and the releases then have them in place of the placeholders of this source tree.
#
# usage: packaging/publisher.sh FOLDER    (a copy of the tree, in which the script replaces them)
set -euo pipefail

homepage='https://placeholder.example.org'
repository='https://placeholder.example.org/ipv6natd.git'
maintainer='the ipv6natd authors <maintainers@placeholder.example.org>'

folder=${1:?name the copy of the tree}
address=${maintainer##*<}
if [[ "$homepage $repository $maintainer" == *placeholder.example.org* ]]; then
    echo "publisher.sh: the addresses are placeholders; fill them in before you publish" >&2
fi
# A release replaces them before it builds the packages. Then none is left here, and grep returns 1.
named() {
    grep -rlIZ --exclude=publisher.sh 'placeholder\.example\.org' "$folder" || (($? == 1))
}
# The longer placeholder first, because it contains a shorter one.
named | xargs -0 -r sed -i \
    -e "s|the ipv6natd authors <maintainers@placeholder\.example\.org>|$maintainer|g" \
    -e "s|maintainers@placeholder\.example\.org|${address%>}|g" \
    -e "s|https://placeholder\.example\.org/ipv6natd\.git|$repository|g" \
    -e "s|https://placeholder\.example\.org|$homepage|g"
