#!/usr/bin/env bash
# get-servers.sh FOLDER: fetches Redis, Valkey and NATS servers of several versions, for the tests.
#
# They come from the packages of the operating system, through the mirror that apt already uses, into FOLDER. Nothing is
# installed and no root is needed: the packages are only unpacked. Each server runs on the C library of the suite it was
# built for, so newer ones run on older systems as well. The result is FOLDER/bin/<redis|valkey|nats>-<version>-server.
#
# A second run does nothing; two at once wait for each other. Remove FOLDER to fetch again.
set -euo pipefail
shopt -s nullglob

. "$(dirname "${BASH_SOURCE[0]}")/own-apt.sh"

folder=${1:?get-servers: give the folder to fetch into}

for tool in apt-get apt-cache apt-config dpkg dpkg-deb flock; do
  if ! command -v "$tool" > /dev/null; then
    cat >&2 <<TEXT
get-servers: this system has no $tool; servers can be fetched from the packages of Debian and its relatives only.
Start a Docker engine, or put redis-server, valkey-server and nats-server on PATH, for example with
  brew install redis valkey nats-server        (macOS)
  dnf install redis valkey                     (Fedora)
  pacman -S redis valkey nats-server           (Arch)
TEXT
    exit 3
  fi
done

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
exec 9> "$folder/lock"
flock 9
if [ -e "$folder/complete" ]; then exit 0; fi

codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(own_mirror)
if [ -z "$mirror" ]; then
  echo "get-servers: apt has no source for the release '$codename': add it to apt's sources, or use Docker or PATH" >&2
  exit 3
fi
case $mirror in
  */debian/)
    suites="bookworm bookworm-backports trixie trixie-backports sid experimental" components=main
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg ;;
  *)
    suites="$codename $codename-updates" components="main universe"
    keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg ;;
esac

rm -rf "$folder"/{packages,roots,bin,bin.new}
mkdir -p "$folder"/{packages,roots,bin.new}
sources=()
for suite in $suites; do sources+=("deb [signed-by=$keyring] ${mirror%/} $suite $components"); done
own_apt "$folder" "${sources[@]}"
apt-get -qq update >&2 || echo "get-servers: not every suite could be read, going on with the others" >&2

# Where a suite's libraries come from.
library_suite() {
  case $1 in
    experimental) echo sid ;;
    *-backports) echo "${1%-backports}" ;;
    *) echo "${1%-updates}" ;;
  esac
}

# offered PACKAGE...: "<package> <version> <suite>" for all that the mirror has. Debian's redis-server package is a link
# into redis-tools, which holds the program.
offered() {
  apt-cache madison "$@" 2> /dev/null | sed -E 's/ *\| */|/g; s/^ *//' |
    awk -F'|' '{ split($3, from, " "); split(from[2], suite, "/"); print $1, $2, suite[1] }'
}

libraries() { # SUITE: unpacks into roots/libraries-SUITE what the servers link against
  local root=$folder/roots/libraries-$1
  if [ -d "$root" ]; then return; fi
  mkdir -p "$root" "$folder/packages/$1"
  (
    cd "$folder/packages/$1"
    offered libc6 libatomic1 libjemalloc2 liblzf1 libssl3 libssl3t64 libstdc++6 libgcc-s1 libsystemd0 libcap2 zlib1g \
      libzstd1 liblzma5 liblz4-1 libgcrypt20 libgpg-error0 |
      awk -v suite="$1" '$3 == suite && !seen[$1]++ { print $1 "=" $2 }' | xargs apt-get -qq download >&2
    for package in *.deb; do dpkg-deb -x "$package" "$root"; done
  )
}

first() { compgen -G "$1" | head -1; }

while read -r package full suite; do
  version=$(sed -E 's/^[0-9]+://; s/[-+~].*//' <<< "$full")
  kind=${package%-tools} kind=${kind%-server}
  root=$folder/roots/$kind-$version
  if [ -d "$root" ]; then continue; fi
  (cd "$folder/packages" && apt-get -qq download "$package=$full" >&2)
  dpkg-deb -x "$(first "$folder/packages/${package}_*.deb")" "$root"
  rm "$folder/packages/${package}"_*.deb
  wrapper=$folder/bin.new/$kind-$version-server
  if [ "$kind" = nats ]; then
    run=("$root/usr/sbin/nats-server")
  else
    libraries_from=$(library_suite "$suite")
    libraries "$libraries_from"
    lib=$folder/roots/libraries-$libraries_from
    # One program serves as all of redis-server, redis-sentinel and redis-check-rdb: its name decides.
    if [ ! -e "$root/usr/bin/$kind-server" ]; then ln -s "$kind-check-rdb" "$root/usr/bin/$kind-server"; fi
    loader=$(first "$lib/usr/lib/*/ld-linux*.so*" || first "$lib/lib/*/ld-linux*.so*")
    path=$(printf '%s:' "$lib"/usr/lib/*-linux-gnu* "$lib"/lib/*-linux-gnu*)
    run=("$loader" --library-path "${path%:}" "$root/usr/bin/$kind-server")
    ln -s "../libraries-$libraries_from" "$root/libraries"
  fi
  printf '#!/bin/sh\nexec %s "$@"\n' "$(printf '%q ' "${run[@]}")" > "$wrapper"
  chmod +x "$wrapper"
  if "$wrapper" --version > /dev/null 2>&1; then
    echo "get-servers: $kind $version ($suite)" >&2
  else
    echo "get-servers: $kind $version ($suite) does not run here, left out: $("$wrapper" --version 2>&1 | head -1)" >&2
    rm "$wrapper"
  fi
done < <(offered redis-tools valkey-tools nats-server)

if [ -z "$(ls "$folder/bin.new")" ]; then
  echo "get-servers: no server could be fetched; is the mirror that apt uses reachable?" >&2
  exit 1
fi
mv "$folder/bin.new" "$folder/bin"
rm -rf "$folder/packages" "$folder/apt"
touch "$folder/complete"
