#!/bin/sh
# compose-env.sh: prints random passwords for docker-compose.yml. Keep them: the databases are made with them.
set -eu
for name in TEMPORAL_STORE_PASSWORD WEFT_STORE_PASSWORD WEFT_S3_SECRET_KEY; do
  echo "$name=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
done
