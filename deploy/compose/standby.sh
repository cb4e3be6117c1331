#!/usr/bin/env bash
# Copies the primary at the first start, and then follows it.
set -euo pipefail

primary=${PRIMARY:-host=primary port=5432}
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    chmod 0700 "$PGDATA"
    until pg_basebackup -D "$PGDATA" -R -X stream -c fast -S standby \
        -d "$primary user=replicator application_name=standby"; do
        find "$PGDATA" -mindepth 1 -delete # what a copy that failed has left
        sleep 2
    done
fi
exec postgres -c hot_standby_feedback=on -c max_connections=200
