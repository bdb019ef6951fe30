#!/usr/bin/env bash
# A standby of postgres-0: copied from it at the first start, and streaming from then on.
set -euo pipefail

: "${PGDATA:=/var/lib/postgresql/data}"
: "${PRIMARY:=postgres-0}"
: "${PRIMARY_PORT:=5432}"

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    # The password is in a file that only this user can read, not among the arguments.
    umask 077
    printf '%s:%s:*:replicator:%s\n' "$PRIMARY" "$PRIMARY_PORT" "$REPLICATION_PASSWORD" > /tmp/passwords
    # A copy that was cut off is begun anew.
    find "$PGDATA" -mindepth 1 -delete
    PGPASSFILE=/tmp/passwords pg_basebackup --pgdata "$PGDATA" --write-recovery-conf --slot postgres_1 \
        --wal-method stream --checkpoint fast --no-password \
        --dbname "host=$PRIMARY port=$PRIMARY_PORT user=replicator"
    # What the copy wrote down names a file that is gone with the container.
    cat >> "$PGDATA/postgresql.auto.conf" <<CONF
primary_conninfo = 'host=$PRIMARY port=$PRIMARY_PORT user=replicator password=$REPLICATION_PASSWORD application_name=postgres_1'
CONF
    rm /tmp/passwords
    chmod 700 "$PGDATA"
    if [ "$(id -u)" -eq 0 ]; then
        chown -R postgres:postgres "$PGDATA"
    fi
fi
# The image's own script makes itself the user postgres, and starts the server.
exec "${ENTRYPOINT:-docker-entrypoint.sh}" postgres "$@"
