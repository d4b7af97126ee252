#!/bin/sh
# compose-env.sh [FILE]: writes FILE (.env) with random passwords for docker-compose.yml, and with the variables by which `weft`
# on this machine finds the servers: set -a; . ./.env; set +a
#
# The databases are made with these passwords, so a file that is there is kept. Only its owner can read it.
set -eu
file=${1:-.env}
if [ -e "$file" ]; then
  echo "compose-env.sh: $file is there already, and the databases were made with its passwords; to start anew remove it and" \
    "the volumes (docker compose down --volumes)" >&2
  exit 1
fi
password() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
temporal=$(password)
store=$(password)
s3=$(password)
umask 077
cat >"$file" <<ENV
TEMPORAL_STORE_PASSWORD=$temporal
WEFT_STORE_PASSWORD=$store
WEFT_S3_SECRET_KEY=$s3

WEFT_TEMPORAL=127.0.0.1:7233
WEFT_KAFKA=127.0.0.1:29092
WEFT_S3=http://127.0.0.1:9000
WEFT_S3_ACCESS_KEY=weft
WEFT_STORE=postgres://weft:$store@127.0.0.1:15432/weft?sslmode=disable
ENV
