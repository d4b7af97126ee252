#!/bin/sh
# compose-postgres.sh: PostgreSQL runs this once, when its data folder is new: a database and a user for Weft.
set -eu
psql -v ON_ERROR_STOP=1 -v password="$WEFT_STORE_PASSWORD" --username "$POSTGRES_USER" --dbname postgres <<'SQL'
CREATE USER weft PASSWORD :'password';
CREATE DATABASE weft OWNER weft;
REVOKE CONNECT ON DATABASE weft FROM PUBLIC;
SQL
