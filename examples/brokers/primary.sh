#!/usr/bin/env bash
# Lets a standby in. The image of PostgreSQL runs this once, when the database is new.
set -euo pipefail

psql --set ON_ERROR_STOP=1 --set word="$REPLICATION_PASSWORD" \
    --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" <<'SQL'
CREATE ROLE replicator LOGIN REPLICATION PASSWORD :'word';
SELECT pg_create_physical_replication_slot('postgres_1');
SQL
echo 'host replication replicator all scram-sha-256' >> "$PGDATA/pg_hba.conf"
