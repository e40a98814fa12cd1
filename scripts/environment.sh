# shellcheck shell=bash
# Sourced by the scripts beside it: where this checkout keeps its things, which PostgreSQL it uses,
# and as whom that runs.
# shellcheck disable=SC2034 # what is named here is for them

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
cd -- "$root" || exit

note() { printf '%s\n' "$*" >&2; }
die() {
    note "honcho: $*"
    exit 1
}

# .honcho is a symlink where PostgreSQL's user cannot reach the checkout. PostgreSQL relocates itself
# from the path of its program, so that path must be free of symlinks.
state=$(readlink -m -- "$root/.honcho")

# The last PostgreSQL set up, unless another one is asked for.
major=${PG:-}
if [[ -z $major && -r $state/pg ]]; then major=$(<"$state/pg"); fi

# Settings of the caller's own PostgreSQL must not lead ours elsewhere.
for name in "${!PG@}"; do
    if [[ $name != PG ]]; then unset "$name"; fi
done
export LC_ALL=C.UTF-8
PATH=$PATH:${CARGO_HOME:-${HOME-}/.cargo}/bin

bin_of() { printf '%s/lib/postgresql/%s/bin' "$state/$1" "$major"; }
# HONCHO_TREE names another tree than the one that `make build` installs into: test-upgrade does.
bindir=$(bin_of "${HONCHO_TREE:-pg$major}")
test_bindir=$(bin_of "pg$major-test")

# One home of the version, of pgrx's, and of the oldest Rust: Cargo.toml.
version=$(sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml)
pgrx_version=$(sed -n 's/^pgrx *= *"=\(.*\)"/\1/p' Cargo.toml)
rust_version=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)

export PG_CONFIG=$bindir/pg_config
export PGRX_HOME=$state/pgrx
export HONCHO_SERVICE=${CARGO_TARGET_DIR:-$root/target}/release/honcho-service
if [[ $HONCHO_SERVICE != /* ]]; then HONCHO_SERVICE=$root/$HONCHO_SERVICE; fi
# pgrx's tests call cargo-pgrx by this name too.
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
# pgrx's tests connect as $USER, which containers often leave out.
export USER=${USER:-$(id -un)}

# PostgreSQL refuses to run as root.
owner=
if ((EUID == 0)); then owner=postgres; fi

# Runs a program as PostgreSQL's user. From /, because PostgreSQL 15 gives up in a directory that its
# user cannot enter.
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

# A private directory of PostgreSQL's user.
owned_dir() { install -d -m 700 ${owner:+-o "$owner" -g "$owner"} -- "$1"; }

need_setup() {
    if [[ -z $major || ! -x $PG_CONFIG ]]; then die "nothing is set up here yet: make build"; fi
}
