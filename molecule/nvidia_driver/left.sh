# shellcheck shell=bash
set -o pipefail
# mokutil and its libraries: by the steps that the role names, not by the role.
dpkg-query -W -f '${Package}\n' | sort | diff /srv/packages-before - | grep -v -e '^[0-9]' -e '^> \(mokutil\|libefivar1t64\|libefivar1\|libkeyutils1\|openssl\)$'
# apt notes the names that it ignores.
apt-mark showhold 2>/dev/null
find /etc/modprobe.d /etc/apt/apt.conf.d /etc/apt/sources.list.d /var/lib/train-classifier -iname '*nvidia*' -o -name installed
find /lib/modules /usr/src -path '*nvidia-current*' 2>/dev/null
exit 0
