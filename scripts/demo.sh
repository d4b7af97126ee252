#!/bin/sh
# demo.sh DIR: the life of a job on real servers, which run in one process here: Temporal, Kafka and S3. Every step says the
# command that it runs and shows what came of it. KEEP=1 leaves everything running; ORDERS and SEED choose the environment.
set -eu
weft=$(realpath "${WEFT:-bin/weft}")
servers=$(realpath "${STACK:-bin/weft-dev}")
orders=${ORDERS:-3000}
mkdir -p "$1"
dir=$(realpath "$1")
cd "$(dirname "$0")/.."
began=$(date +%s)

step() { printf '\n== %s  (%s s)\n' "$1" "$(($(date +%s) - began))"; }
say() { printf '%s\n' "$*"; }
# show COMMAND...: prints a command as a person would type it.
show() {
  printf '$'
  for word in "$@"; do
    case $word in *[\ \']*) printf " '%s'" "$word" ;; *) printf ' %s' "$word" ;; esac
  done | sed "s|$weft|weft|g; s|$servers|weft-dev|g; s|$dir/||g"
}
run() {
  show "$@"
  echo
  "$@"
}
fail() {
  printf 'demo: %s; the logs are in %s\n' "$1" "$dir" >&2
  exit 1
}
# await WHAT COMMAND...: waits until a command succeeds, two minutes at most.
await() {
  what=$1
  shift
  for _ in $(seq 240); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.5
  done
  fail "not within two minutes: $what"
}

pids=
start() { # start NAME COMMAND...: runs a command beside this script
  name=$1
  shift
  show "$@"
  echo ' &'
  "$@" >"$dir/$name.log" 2>&1 &
  pids="$! $pids"
}
finish() {
  status=$?
  if [ -n "${KEEP:-}" ] && [ "$status" -eq 0 ]; then return; fi
  # The agent ends its processes on SIGINT; the servers go last.
  if [ -n "${agent:-}" ]; then kill -INT "$agent" 2>/dev/null && wait "$agent" || true; fi
  for pid in $pids; do kill "$pid" 2>/dev/null && wait "$pid" || true; done
}
trap finish EXIT
trap 'exit 1' INT TERM

rm -rf "$dir/data" "$dir/agent" "$dir/pay" "$dir/stack.json"
export WEFT_STACK_FILE="$dir/stack.json"

step "1. Start: Temporal, Kafka and S3 in one process, a control worker, and the agent of this machine"
start servers "$servers" up --data "$dir/data"
await "the servers run" test -s "$WEFT_STACK_FILE"
start control "$weft" worker
start agent "$weft" agent --work "$dir/agent"
agent=${pids%% *}
await "the control worker works" grep -q 'msg=working' "$dir/control.log"
await "the agent works" grep -q 'taking processes' "$dir/agent.log"

step "2. Eleven systems write the records of $orders purchases of the last five days; most of them reach Kafka"
first=$(date -u -d '5 days ago' +%Y-%m-%dT00:00:00Z 2>/dev/null || date -u -v-5d +%Y-%m-%dT00:00:00Z)
run "$weft" gen --out "$dir/pay" --orders "$orders" --seed "${SEED:-1}" --start "$first" --span 120h
# The example's job, with the canary and the reach of a demo: steps of seconds, and sessions of hours in place of days.
sed -e "s/^freeze:.*//" -e 's/hold: [0-9]*m/hold: 2s/g' -e 's/min_sessions: 1000/min_sessions: 200/' -e 's/reject_rate: "<= 0.01"/reject_rate: "<= 0.05"/' \
  -e 's/^session: .*/session: {gap: 30m, gaps: {order: 2h, txn: 2h, receipt: 2h, delivery: 2h}, settle: 10m, max_span: 12h, retention: 12h}/' \
  "$dir/pay/job.yaml" >"$dir/v1.yaml"
mkdir -p "$dir/first"
all= most=
for file in "$dir"/pay/*; do
  name=$(basename "$file")
  case $name in job.yaml | truth.jsonl | rejects.jsonl | README*) continue ;; esac
  head -n $(($(wc -l <"$file") * 9 / 10)) "$file" >"$dir/first/$name"
  all="$all --input ${name%%.*}=$file"
  most="$most --input ${name%%.*}=$dir/first/$name"
done
# shellcheck disable=SC2086 # one word each
"$weft" produce -q --spec "$dir/v1.yaml" --partitions 2 $most

step "3. Deploy version 1: nothing is served yet, so it is served at once, by a process of its own"
run "$weft" deploy --spec "$dir/v1.yaml" --message 'the first' --watch
decided() { "$weft" sessions --scenario paid_not_delivered --decided --limit 1 --json | grep -q '"id"'; }
await "version 1 has sessions" decided
run "$weft" job status payments

step "4. Ask: a purchase that was paid and not delivered, and its player"
run "$weft" sessions --scenario paid_not_delivered --decided --limit 3
stuck=$("$weft" sessions --scenario paid_not_delivered --decided --limit 1 --json | sed -n 's/.*"id":"\([^"]*\)".*/\1/p' | head -n 1)
[ -n "$stuck" ] || fail "no purchase is stuck"
run "$weft" sessions "$stuck"
user=$("$weft" sessions "$stuck" --json | sed -n 's/.*"user":"\([^"]*\)".*/\1/p' | head -n 1)
run "$weft" users "$user"

step "5. Version 2 calls every paid purchase undelivered. Its gates stop it; what is served does not change"
sed 's/when: step("paid").count > 0 \&\& step("delivered").count == 0/when: step("paid").count > 0/' "$dir/v1.yaml" >"$dir/v2.yaml"
cmp -s "$dir/v1.yaml" "$dir/v2.yaml" && fail "version 2 is version 1"
if run "$weft" deploy --spec "$dir/v2.yaml" --message 'simpler rule' --watch; then fail "version 2 was promoted"; fi

show "$weft" job compare payments
echo
"$weft" job compare payments >"$dir/compare.txt"
head -n 8 "$dir/compare.txt"
say "  … (weft job compare payments SESSION shows one as both versions had it)"

step "6. Version 3 names purchases that take long, and says so. It is promoted after its canary"
sed 's/^scenarios:$/expect: [long]\nscenarios:\n  - name: long\n    when: duration > duration("1m")/' "$dir/v1.yaml" >"$dir/v3.yaml"
run "$weft" deploy --spec "$dir/v3.yaml" --message 'name long purchases' --watch
run "$weft" sessions --scenario long --limit 2

step "7. Roll back to version 1 by a signal: the same as tctl workflow signal -w job/payments -n rollback -i '{\"to\":1,\"reason\":\"…\"}'"
run "$weft" job rollback payments --to 1 --reason 'support asked for it'
served() { "$weft" job show payments | grep -q "^serves  *version $1 "; }
await "version 1 is served" served 1
run "$weft" job history payments | tail -n 1

step "8. The rest of the records comes, and all before it a second time. Live = replay of the archive = replay of the files?"
# shellcheck disable=SC2086
"$weft" produce -q --spec "$dir/v1.yaml" $all
# shellcheck disable=SC2086
printf '$ weft verify --job payments --wait 3m --input SOURCE=FILE… (the archive closes its files once a minute)\n'
# shellcheck disable=SC2086
"$weft" verify --job payments --wait 3m $all

step "9. Compute a day of the past anew from the archive, as a durable workflow, and publish it in one step"
day=$(date -u -d '4 days ago' +%Y-%m-%d 2>/dev/null || date -u -v-4d +%Y-%m-%d)
next=$(date -u -d '3 days ago' +%Y-%m-%d 2>/dev/null || date -u -v-3d +%Y-%m-%d)
run "$weft" backfill start payments --from "$day" --to "$next" --mode compare --watch
run "$weft" backfill start payments --from "$day" --to "$next" --reason 'show it' --watch
run "$weft" jobs

step "Done"
sed -n 's/[{},]/\n/g; p' "$WEFT_STACK_FILE" | grep -E '"(temporal|kafka|s3|store)":' | sed 's/^ *"/  /; s/": *"/: /; s/"$//'
if [ -n "${KEEP:-}" ]; then
  say "Everything runs on. To ask it: export WEFT_STACK_FILE=$dir/stack.json; to end it: kill -INT $agent; kill $pids"
else
  say "Everything ends now; KEEP=1 make demo leaves it running."
fi
