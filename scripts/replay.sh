#!/bin/sh
# replay.sh DIR [FLAG...]: replay the environment that `weft gen` wrote to DIR, with its own job and one input a source.
# It says the command first, so that it can be typed again.
set -eu
weft=${WEFT:-bin/weft}
dir=$1
shift

set -- replay --spec "$dir/job.yaml" --out "$dir/results" "$@"
for file in "$dir"/*.jsonl "$dir"/*.log "$dir"/*.csv; do
  name=$(basename "$file")
  case $name in
  truth.jsonl | rejects.jsonl) ;; # what to compare with; no system writes it
  *) set -- "$@" --input "${name%.*}=$file" ;;
  esac
done
printf '$ %s' "$weft"
for word in "$@"; do
  case $word in
  --*) printf ' \\\n    %s' "$word" ;;
  *) printf ' %s' "$word" ;;
  esac
done
printf '\n'
exec "$weft" "$@"
