#!/bin/sh
# bench.sh DIR: the whole engine, from bytes to files of sessions, on a generated environment. It is run three times
# because the first run also reads the files from disk.
set -eu
weft=${WEFT:-bin/weft}
dir=$1
cd "$(dirname "$0")/.."

"$weft" gen --out "$dir" --orders "${ORDERS:-100000}" --seed 1
for run in 1 2 3; do
  for format in parquet jsonl; do
    printf 'run %s, %-7s ' "$run" "$format"
    scripts/replay.sh "$dir" --format "$format" | grep '^speed'
  done
done
