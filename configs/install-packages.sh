#!/bin/sh
# Install the Debian packages named as arguments that are missing, and say which.
set -eu
missing=
for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null; then
    echo "install these packages, then try again:$missing" >&2
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "run as root, or install first: apt-get install$missing" >&2
    exit 1
fi
echo "installing the Debian packages that are missing:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # a list of names
apt-get install -qq -y --no-install-recommends $missing >/dev/null
