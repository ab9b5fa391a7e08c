#!/usr/bin/env bash
# test-containers.sh [--install-engine] [TEST FILE...]: runs the tests, all unless files are given, with every broker in
# a container.
#
# With a Docker engine that answers, that one is used; images that it neither has nor can pull are made from the
# servers of get-servers.sh, and removed at the end. Without one, as root, an engine is started for the time of the
# test, on a socket and in a folder of its own, and stopped at the end. Nothing is changed on the system, unless
# --install-engine is given: then, where there is no Docker engine to start, it is installed with apt-get.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install=no
if [ "${1:-}" = --install-engine ]; then install=yes; shift; fi

say() { echo "test-containers: $*" >&2; }

scratch=$(mktemp -d)
engine=
bridge=
made=()
finish() {
  for image in "${made[@]}"; do docker image rm "$image" > /dev/null || true; done
  if [ -n "$engine" ]; then
    kill "$engine" 2> /dev/null || true
    wait "$engine" 2> /dev/null || true
    if [ -n "$bridge" ]; then ip link delete "$bridge" 2> /dev/null || true; fi
    say "stopped the engine (process $engine)"
  fi
  rm -rf "$scratch" || say "could not remove $scratch"
}
trap finish EXIT

if command -v docker > /dev/null && docker version > /dev/null 2>&1; then
  say "using the Docker engine that answers"
else
  if ! command -v dockerd > /dev/null || ! command -v docker > /dev/null; then
    if [ "$install" = no ]; then
      say "no Docker engine answers, and there is none to start: start one, or run again with --install-engine"
      exit 3
    fi
    apt-get install -y --no-install-recommends docker.io iptables >&2
  fi
  if [ "$(id -u)" != 0 ]; then
    say "no Docker engine answers, and only root can start one: start one, or run again as root"
    exit 3
  fi
  # Its own network, without touching the firewall: ports are published by Docker's proxy process alone.
  if ! ip link show docker0 > /dev/null 2>&1; then bridge=docker0; fi
  dockerd --host "unix://$scratch/docker.sock" --data-root "$scratch/data" --exec-root "$scratch/exec" \
    --pidfile "$scratch/docker.pid" --iptables=false --ip-forward=false --ip-masq=false > "$scratch/log" 2>&1 &
  engine=$!
  export DOCKER_HOST=unix://$scratch/docker.sock
  until docker version > /dev/null 2>&1; do
    if ! kill -0 "$engine" 2> /dev/null; then
      say "the engine did not start:"
      tail -20 "$scratch/log" >&2
      engine=
      exit 1
    fi
    sleep 0.1
  done
  say "started Docker $(docker version --format '{{.Server.Version}}') for the time of the test (process $engine)"
fi

make_image() { # KIND LINE IMAGE
  local servers=.cache/servers root tree loader libraries program
  root=$(printf '%s\n' "$servers/roots/$1-$2".* | sort -V | tail -1)
  if [ -z "$root" ]; then
    say "no image $3, and no server to make it from"
    return
  fi
  libraries=$root/libraries # NATS has none of its own: any C library will do
  if [ ! -e "$libraries" ]; then libraries=$(printf '%s\n' "$servers/roots"/libraries-* | tail -1); fi
  loader=$(printf '%s\n' "$libraries"/{usr/,}lib/*/ld-linux*.so* | head -1)
  tree=$scratch/tree
  rm -rf "$tree"
  mkdir -p "$tree"/{data,tmp,etc,usr/bin,usr/lib,usr/lib64}
  ln -s usr/lib "$tree/lib"
  ln -s usr/lib64 "$tree/lib64"
  chmod 1777 "$tree/data" "$tree/tmp"
  program=$(compgen -G "$root/usr/*bin/$1-server")
  cp -L "$program" "$tree/usr/bin/$1-server"
  cp -L "$loader" "$tree/usr/lib/"
  cp -L "$loader" "$tree/usr/lib64/"
  "$loader" --library-path "$(printf '%s:' "$libraries"/{usr/,}lib/*-linux-gnu*)" --list "$program" | awk '$2 == "=>" && $3 ~ /\// { print $3 }' |
    while read -r library; do cp -L "$library" "$tree/usr/lib/"; done
  local start=(--change "CMD [\"$1-server\"]")
  if [ "$1" = nats ]; then start=(--change 'ENTRYPOINT ["/usr/bin/nats-server"]'); fi
  tar -C "$tree" -c . | docker import --change 'ENV PATH=/usr/bin' --change 'WORKDIR /data' "${start[@]}" - "$3" > /dev/null
  made+=("$3")
}

# The release lines in packages/testing/src/internal/brokers/versions.ts.
for server in redis/8.6 redis/8.0 redis/7.0 valkey/9.1 valkey/8.1 nats/2.15 nats/2.10 nats/2.9; do
  kind=${server%/*} line=${server#*/}
  image=$kind:$line
  if [ "$kind" = valkey ]; then image=valkey/valkey:$line; fi
  if docker image inspect "$image" > /dev/null 2>&1 || docker pull --quiet "$image" > /dev/null 2>&1; then continue; fi
  scripts/get-servers.sh
  make_image "$kind" "$line" "$image"
done
say "images made from packages: ${made[*]:-none}"

before=$(docker ps --all --quiet | wc -l)
status=0
MILLRACE_BROKERS=container PATH=$PWD/node_modules/.bin:$PATH vitest run "$@" || status=$?
left=$(($(docker ps --all --quiet | wc -l) - before))
if [ "$left" != 0 ]; then
  say "$left containers were left behind:"
  docker ps --all >&2
  if [ -n "$engine" ]; then docker ps --all --quiet | xargs -r docker rm --force > /dev/null; fi
  status=1
else
  say "no container was left behind"
fi
exit "$status"
