#!/usr/bin/env bash
# Runs once, when the primary is made: the role and database of the nodes, and a place for the standby.
set -euo pipefail

psql --username postgres --set ON_ERROR_STOP=1 \
    --set password="$DATABASE_PASSWORD" --set replication="$REPLICATION_PASSWORD" <<'SQL'
CREATE ROLE hosi LOGIN PASSWORD :'password';
CREATE DATABASE hosi OWNER hosi;
CREATE ROLE replicator REPLICATION LOGIN PASSWORD :'replication';
SELECT pg_create_physical_replication_slot('standby');
SQL
echo "host replication replicator all scram-sha-256" >> "$PGDATA/pg_hba.conf"
