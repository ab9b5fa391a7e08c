#!/usr/bin/env bash
# get-chromium.sh [FOLDER]: fetches Chromium for the page's test, and prints its program, its libraries, its fonts.
#
# It comes from the packages of the operating system, through the mirror that apt already uses, into FOLDER
# (.cache/chromium unless given). Nothing is installed and no root is needed: apt runs on a configuration, lists and
# cache of its own, and the packages are only unpacked. A second run prints what is there; two at once wait.
set -euo pipefail
shopt -s nullglob

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
folder=${1:-$project/.cache/chromium}

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
  mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$codename" '$1 == release && !found { found = 1; print $2 }')
  if [[ $mirror != */debian/ ]]; then
    echo "get-chromium: only Debian has Chromium as a package; put chromium on PATH" >&2
    exit 3
  fi
  rm -rf "$folder"/{apt,root}
  mkdir -p "$folder"/apt/{etc/preferences.d,etc/trusted.gpg.d,etc/apt.conf.d,state/lists/partial,cache/archives/partial}
  mkdir -p "$root"
  : > "$folder/apt/status"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${mirror%/} $codename main" \
    > "$folder/apt/etc/sources.list"
  {
    apt-config dump | grep -E '^Acquire::(http|https|Retries)' || true # keep the proxy this machine uses
    cat <<CONF
Dir::Etc "$folder/apt/etc";
Dir::State "$folder/apt/state";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt/cache";
APT::Architecture "$(dpkg --print-architecture)";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Check-Valid-Until "false";
CONF
  } > "$folder/apt/apt.conf"
  export APT_CONFIG=$folder/apt/apt.conf
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
