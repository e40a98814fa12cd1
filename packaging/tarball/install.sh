#!/bin/sh
# Installs the honcho extension into the PostgreSQL of $PG_CONFIG (default: the first pg_config in PATH).
set -eu

here=$(cd -- "$(dirname -- "$0")" && pwd)
pg_config=${PG_CONFIG:-pg_config}
version=$("$pg_config" --version) || {
    echo "install.sh: set PG_CONFIG to the pg_config of the PostgreSQL to install into" >&2
    exit 1
}
case $version in
    "PostgreSQL @PG@."* | "PostgreSQL @PG@"[!0-9]*) ;;
    *)
        echo "install.sh: this is for PostgreSQL @PG@, and $pg_config belongs to $version" >&2
        exit 1
        ;;
esac
install -m 755 -- "$here/pkglibdir/honcho.so" "$("$pg_config" --pkglibdir)/"
install -m 755 -- "$here/bindir/honcho-move-shard" "$("$pg_config" --bindir)/"
share=$("$pg_config" --sharedir)/extension
install -m 644 -- "$here"/sharedir/extension/*.* "$share/"
install -d -m 755 -- "$share/honcho_router"
install -m 644 -- "$here"/sharedir/extension/honcho_router/* "$share/honcho_router/"
echo "Installed into $version. Next, in your database: create extension honcho; or alter extension honcho update;"
