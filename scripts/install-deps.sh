#!/bin/sh
# Installs the Debian packages that are missing for the named purposes (build, test, models, ci), or says which they are.
set -eu

packages=""
for purpose in "$@"; do
    case "$purpose" in
    build) packages="$packages gcc cmake make pkg-config libc6-dev libpcre2-dev libjansson-dev libmicrohttpd-dev" ;;
    test) packages="$packages libcmocka-dev" ;;
    models) packages="$packages python3 python3-pip ca-certificates" ;;
    ci) packages="$packages clang clang-format libclang-rt-14-dev python3 git" ;;
    *) echo "install-deps: unknown purpose '$purpose' (expected build, test, models or ci)" >&2; exit 2 ;;
    esac
done

missing=""
for package in $packages; do
    case "$package" in # a tool that is there by other means serves as well
    gcc | cmake | make | git | clang | clang-format | python3) command -v "$package" > /dev/null 2>&1 && continue ;;
    pkg-config) command -v pkg-config > /dev/null 2>&1 && continue ;;
    python3-pip) python3 -m pip --version > /dev/null 2>&1 && continue ;;
    esac
    state=$(dpkg-query -W -f '${Status}' "$package" 2> /dev/null || true)
    [ "$state" = "install ok installed" ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get > /dev/null 2>&1; then
    echo "fovea needs these Debian packages:$missing" >&2
    echo "install them as root:  apt-get install$missing" >&2
    exit 1
fi
echo "installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get install -y --no-install-recommends $missing > /tmp/fovea-deps.$$ 2>&1 || {
    apt-get update > /tmp/fovea-deps.$$ 2>&1 &&
        apt-get install -y --no-install-recommends $missing >> /tmp/fovea-deps.$$ 2>&1 || {
        cat /tmp/fovea-deps.$$ >&2
        rm -f /tmp/fovea-deps.$$
        echo "installing failed:$missing" >&2
        exit 1
    }
}
rm -f /tmp/fovea-deps.$$
