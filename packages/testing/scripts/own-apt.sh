# own-apt.sh: functions for scripts that unpack packages of the operating system without installing anything.
#
# They use the mirror that apt already uses, and need no root: apt runs on a configuration, lists and cache of its own.

# own_mirror: prints the mirror of this system's release, as apt knows it; nothing where apt has none.
own_mirror() {
  apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v release="$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" '$1 == release && !found { found = 1; print $2 }'
}

# own_apt FOLDER SOURCE...: from now on apt-get works in FOLDER/apt, with these lines as its sources.
own_apt() {
  local folder=$1
  shift
  rm -rf "$folder/apt"
  mkdir -p "$folder"/apt/{etc/preferences.d,etc/trusted.gpg.d,etc/apt.conf.d,state/lists/partial,cache/archives/partial}
  : > "$folder/apt/status"
  printf '%s\n' "$@" > "$folder/apt/etc/sources.list"
  {
    apt-config dump | grep -E '^Acquire::(http|https|Retries)' || true # keep the proxy this machine uses
    cat << CONF
Dir::Etc "$folder/apt/etc";
Dir::State "$folder/apt/state";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt/cache";
APT::Architecture "$(dpkg --print-architecture)";
APT::Sandbox::User "root";
Acquire::Languages "none";
// A mirror that is a snapshot serves lists past their date; the signature is still checked.
Acquire::Check-Valid-Until "false";
CONF
  } > "$folder/apt/apt.conf"
  export APT_CONFIG=$folder/apt/apt.conf
}
