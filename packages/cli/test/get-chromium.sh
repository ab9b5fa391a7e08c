#!/usr/bin/env bash
# get-chromium.sh [FOLDER]: fetches Chromium for the page's test, and prints its program, its libraries, its fonts.
#
# It comes from the packages of the operating system, through the mirror that apt already uses, into FOLDER
# (.cache/chromium unless given). Nothing is installed and no root is needed: the packages are only unpacked. A second
# run prints what is there; two at once wait.
set -euo pipefail
shopt -s nullglob

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
folder=${1:-$project/.cache/chromium}
. "$project/packages/testing/scripts/own-apt.sh"

for tool in apt-get apt-config dpkg-deb flock; do
  if ! command -v "$tool" > /dev/null; then
    echo "get-chromium: this system has no $tool: put chromium on PATH" >&2
    exit 3
  fi
done

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
exec 9> "$folder/lock"
flock 9

root=$folder/root
if [ ! -e "$folder/complete" ]; then
  codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
  mirror=$(own_mirror)
  if [[ $mirror != */debian/ ]]; then
    echo "get-chromium: only Debian has Chromium as a package; put chromium on PATH" >&2
    exit 3
  fi
  rm -rf "$root"
  mkdir -p "$root"
  own_apt "$folder" "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror%/} $codename main"
  apt-get -qq update >&2
  apt-get -qq -y --no-install-recommends --download-only install chromium fonts-dejavu-core >&2
  for package in "$folder"/apt/cache/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  rm -rf "$folder/apt" "$root"/usr/share/{doc,man,locale,help}
  sed -i "s|<dir>/usr/share/fonts</dir>|<dir>$root/usr/share/fonts</dir>|" "$root/etc/fonts/fonts.conf"
  touch "$folder/complete"
fi

# The C library is this system's own: the packages are of its release.
libraries=$(printf '%s:' "$root"/usr/lib/*-linux-gnu "$root"/lib/*-linux-gnu "$root"/usr/lib/*-linux-gnu/*/)
echo "$root/usr/lib/chromium/chromium"
echo "${libraries%:}"
echo "$root/etc/fonts"
