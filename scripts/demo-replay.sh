#!/bin/sh
# demo-replay.sh DIR: a payment environment from its records to its stuck purchases. Every step says the command that it runs.
set -eu
weft=${WEFT:-bin/weft}
dir=$1
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$1"; }
run() {
  printf '$ %s\n' "$*"
  "$@"
}

step "1. Eleven systems write the records of ${ORDERS:-20000} purchases: late, out of order, repeated, lost, broken"
rm -rf "$dir"
run "$weft" gen --out "$dir" --orders "${ORDERS:-20000}" --seed "${SEED:-1}"

step "2. One purchase, as three of the systems see it (the channel's and the player's identifiers differ)"
for file in orders.jsonl wallet.jsonl billing.log; do
  printf '%s\n  ' "$file"
  head -n 1 "$dir/$file"
done

step "3. Weft correlates the records of all eleven into sessions, and names what happened in each"
scripts/replay.sh "$dir" --format jsonl

step "4. The result against the truth that the generator knows (weft never saw it)"
printf '$ %s\n' "$weft gen score --truth $dir/truth.jsonl --sessions $dir/results/sessions.jsonl | head -n 4"
"$weft" gen score --truth "$dir/truth.jsonl" --sessions "$dir/results/sessions.jsonl" >"$dir/score.txt"
head -n 4 "$dir/score.txt"
echo "  (all scenarios: $dir/score.txt)"

step "5. A purchase that was paid and never delivered, by system and time"
stuck=$(grep '"scenarios":\["paid_not_delivered"\]' "$dir/results/sessions.jsonl" | grep -v -m 1 '"step":"granted"')
value() { printf '%s\n' "$stuck" | sed -n "s/.*$1.*/\\1/p"; }
printf 'session  %s\nplayer   %s\norder    %s\npaid     %s %s (minor units)\nstuck since %s\n' \
  "$(value '{"id":"\([^"]*\)"')" "$(value '"user":"\([^"]*\)"')" "$(value '"order":\["\([^"]*\)"')" \
  "$(value '"paid_amount":\([0-9]*\)')" "$(value '"paid_currency":"\([^"]*\)"')" \
  "$(value '"paid_not_delivered":"\([^"]*\)"')"
printf '%s\n' "$stuck" | tr '{' '\n' |
  sed -n 's/^"source":"\([^"]*\)".*"time":"\([^"]*\)","step":"\([^"]*\)".*/  \2  \1 \3/p' |
  awk '{printf "  %s  %-11s %s\n", $1, $2, $3}'

step "Where to look next"
cat <<END
  $dir/job.yaml                 the job: sources, keys, scenarios, reports
  $dir/results/sessions.jsonl   one session a line; reports.jsonl and rejects.jsonl are beside it
  $weft spec explain $dir/job.yaml
  README.md                         a job of your own in ten minutes
END
