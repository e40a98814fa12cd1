# shellcheck shell=bash
# Sourced by the scripts: paths and versions of this checkout, the PostgreSQL that it uses, and the user that
# PostgreSQL runs as.
# shellcheck disable=SC2034 # the scripts use these variables

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
cd -- "$root" || exit

note() { printf '%s\n' "$*" >&2; }
die() {
    note "honcho: $*"
    exit 1
}

# .honcho is a symlink if PostgreSQL's user cannot reach the checkout. PostgreSQL finds its files from the path of its
# program, so that path must contain no symlink.
state=$(readlink -m -- "$root/.honcho")

# PG, or else the PostgreSQL that was set up last.
major=${PG:-}
if [[ -z $major && -r $state/pg ]]; then major=$(<"$state/pg"); fi

# PGHOST, PGPORT and the like of the calling shell must not lead the scripts to another server.
for name in "${!PG@}"; do
    if [[ $name != PG ]]; then unset "$name"; fi
done
export LC_ALL=C.UTF-8
PATH=$PATH:${CARGO_HOME:-${HOME-}/.cargo}/bin

bin_of() { printf '%s/lib/postgresql/%s/bin' "$state/$1" "$major"; }
# HONCHO_TREE selects another tree than the one that `make build` installs into; test-upgrade sets it.
bindir=$(bin_of "${HONCHO_TREE:-pg$major}")
test_bindir=$(bin_of "pg$major-test")

# Cargo.toml is the home of these versions.
version=$(sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml)
pgrx_version=$(sed -n 's/^pgrx *= *"=\(.*\)"/\1/p' Cargo.toml)
rust_version=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)

export PG_CONFIG=$bindir/pg_config
export PGRX_HOME=$state/pgrx
export HONCHO_SERVICE=${CARGO_TARGET_DIR:-$root/target}/release/honcho-service
if [[ $HONCHO_SERVICE != /* ]]; then HONCHO_SERVICE=$root/$HONCHO_SERVICE; fi
# pgrx's tests read this variable too.
export CARGO_PGRX=$state/tools/bin/cargo-pgrx
if [[ ! -x $CARGO_PGRX ]]; then
    if found=$(command -v cargo-pgrx); then CARGO_PGRX=$found; fi
fi
cargo_deny_version=0.20.2
CARGO_DENY=$state/tools/bin/cargo-deny
mdbook_version=0.5.4
MDBOOK=$state/tools/bin/mdbook
PROMTOOL=$state/tools/bin/promtool
export PGBOUNCER=$state/tools/bin/pgbouncer
export HAPROXY=$state/tools/bin/haproxy
export NEW_PGBOUNCER=$state/tools/bin/pgbouncer-trixie
export PATRONI=$state/tools/bin/patroni
export PATRONICTL=$state/tools/bin/patronictl
export ETCD=$state/tools/bin/etcd
# pgrx's tests connect as $USER, which is often unset in containers.
export USER=${USER:-$(id -un)}

# PostgreSQL refuses to run as root.
owner=
if ((EUID == 0)); then owner=postgres; fi

# Runs a program as PostgreSQL's user. In /, because PostgreSQL 15 fails in a directory that its user cannot enter.
as_owner() {
    if [[ -n $owner ]]; then
        (cd / && exec runuser -u "$owner" -- "$@")
    else
        "$@"
    fi
}

as_root() {
    if ((EUID == 0)); then "$@"; else sudo -- "$@"; fi
}

# Makes a private directory of PostgreSQL's user.
owned_dir() { install -d -m 700 ${owner:+-o "$owner" -g "$owner"} -- "$1"; }

need_setup() {
    if [[ -z $major || ! -x $PG_CONFIG ]]; then die "nothing is set up here yet: make build"; fi
}
