#!/bin/sh
# play.sh FOLDER [FLAGS...]: plays a generated environment (weft gen --out FOLDER) into the topics of its job, with the flags of
# `weft produce`, such as --rate 5000/s. WEFT names the binary.
set -eu
if [ $# -lt 1 ]; then
  echo "usage: play.sh FOLDER [FLAGS OF weft produce...]" >&2
  exit 2
fi
folder=$1
shift
for file in "$folder"/*; do
  source=$(basename "$file")
  source=${source%.*}
  case $source in
  job | truth | rejects | README) ;;
  *) set -- "$@" --input "$source=$file" ;;
  esac
done
exec "${WEFT:-bin/weft}" produce --spec "$folder/job.yaml" "$@"
