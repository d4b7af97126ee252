#!/usr/bin/env bash
# with-kafka.sh COMMAND...: runs a command beside a real Apache Kafka broker (kafka.sh), which ends with it. The command finds
# the broker by these variables, which the end-to-end tests know:
#
#   WEFT_TEST_KAFKA           host:port, plain
#   WEFT_TEST_KAFKA_SECURE    host:port, with TLS and SASL
#   WEFT_TEST_KAFKA_CA_FILE   the authority of its certificate
#   WEFT_TEST_KAFKA_LOG       the folder of its log, for tests that damage it
#
# WEFT_KAFKA_JARS is a folder that keeps the jars (default: weft/kafka in the user's cache folder).
set -euo pipefail
if [ $# -eq 0 ]; then
  echo "usage: with-kafka.sh COMMAND..." >&2
  exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
jars=${WEFT_KAFKA_JARS:-${XDG_CACHE_HOME:-$HOME/.cache}/weft/kafka}
"$here/kafka-jars.sh" "$jars" >/dev/null

listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
port=
for candidate in 29092 29192 29292 29392; do
  if ! listens $candidate && ! listens $((candidate + 1)) && ! listens $((candidate + 2)); then
    port=$candidate
    break
  fi
done
if [ -z "$port" ]; then
  echo "with-kafka.sh: no free ports for the broker: 29092 and others are taken" >&2
  exit 1
fi

data=$(mktemp -d)
"$here/kafka.sh" "$jars" "$data" "$port" >"$data/broker.log" 2>&1 &
broker=$!
finish() {
  kill "$broker" 2>/dev/null || true # it may have ended
  wait "$broker" 2>/dev/null || true
  rm -rf "$data"
}
trap finish EXIT
began=$SECONDS
until listens "$port" && listens $((port + 2)); do
  if ! kill -0 "$broker" 2>/dev/null || [ $((SECONDS - began)) -gt 90 ]; then
    echo "with-kafka.sh: the broker did not start:" >&2
    tail -n 20 "$data/broker.log" >&2
    exit 1
  fi
  sleep 0.2
done
echo "with-kafka.sh: Apache Kafka ${KAFKA_VERSION:-4.1.1} at 127.0.0.1:$port, with TLS and SASL at 127.0.0.1:$((port + 2)), after $((SECONDS - began)) s" >&2
export WEFT_TEST_KAFKA=127.0.0.1:$port WEFT_TEST_KAFKA_SECURE=127.0.0.1:$((port + 2)) WEFT_TEST_KAFKA_CA_FILE=$data/ca.pem WEFT_TEST_KAFKA_LOG=$data/log
status=0
"$@" || status=$?
exit "$status"
