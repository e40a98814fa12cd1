#!/usr/bin/env bash
# The part of the official image's contract that Honcho's image relies on: the server runs as postgres; an empty volume
# gets a cluster with the password and the database of the environment, and the init scripts run on a server that
# listens on its socket only.
set -euo pipefail

if [[ $1 == postgres && $(id -u) == 0 ]]; then
    install -d -o postgres -g postgres -m 700 "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi
if [[ $1 == postgres && ! -s $PGDATA/PG_VERSION ]]; then
    user=${POSTGRES_USER:-postgres}
    database=${POSTGRES_DB:-$user}
    if [[ -z ${POSTGRES_PASSWORD-} ]]; then
        echo "POSTGRES_PASSWORD must be set" >&2
        exit 1
    fi
    sql() { psql -v ON_ERROR_STOP=1 --no-psqlrc --no-password --username "$user" "$@"; }
    initdb --username="$user" --pwfile=<(printf '%s\n' "$POSTGRES_PASSWORD")
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    pg_ctl start -w -o "-c listen_addresses=''"
    if [[ $database != postgres ]]; then
        sql --dbname postgres --set "database=$database" <<<'create database :"database"'
    fi
    for script in /docker-entrypoint-initdb.d/*; do
        case $script in
            *.sh) "$script" ;;
            *.sql) sql --dbname "$database" --file "$script" ;;
        esac
    done
    pg_ctl stop -w -m fast
fi
exec "$@"
