#!/bin/sh
# kafka.sh JARS DATA PORT: one real Apache Kafka broker on 127.0.0.1 until it is told to stop (SIGTERM, Ctrl-C). JARS is a
# folder that keeps what Maven downloads, DATA a folder for the log; a second start with the same DATA goes on with it.
# Needs Java 17 or later and Maven.
#
#   PORT      plain, without credentials
#   PORT+1    the controller's
#   PORT+2    TLS with SASL: user weft, password weft-secret, by PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; the certificate's
#             authority is DATA/ca.pem
#
# with-kafka.sh runs the end-to-end tests against it. KAFKA_VERSION and KAFKA_HEAP choose another release and another heap.
set -eu
if [ $# -ne 3 ]; then
  echo "usage: kafka.sh JARS DATA PORT" >&2
  exit 2
fi
lib=$("$(dirname "$0")/kafka-jars.sh" "$1")
mkdir -p "$2"
data=$(cd "$2" && pwd)
port=$3
user=weft
password=weft-secret # of a broker that only this machine can reach

if [ ! -e "$data/broker.p12" ]; then
  keytool -genkeypair -alias broker -keyalg EC -groupname secp256r1 -validity 3650 -dname CN=weft-test -ext san=ip:127.0.0.1,dns:localhost \
    -storetype PKCS12 -keystore "$data/broker.p12" -storepass "$password" >&2
  keytool -exportcert -rfc -alias broker -keystore "$data/broker.p12" -storepass "$password" -file "$data/ca.pem" >&2
fi

login=org.apache.kafka.common.security
cat >"$data/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1)),SECURE://127.0.0.1:$((port + 2))
advertised.listeners=PLAINTEXT://127.0.0.1:$port,SECURE://127.0.0.1:$((port + 2))
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL
controller.listener.names=CONTROLLER
ssl.keystore.location=$data/broker.p12
ssl.keystore.password=$password
listener.name.secure.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.secure.plain.sasl.jaas.config=$login.plain.PlainLoginModule required user_$user="$password";
listener.name.secure.scram-sha-256.sasl.jaas.config=$login.scram.ScramLoginModule required;
listener.name.secure.scram-sha-512.sasl.jaas.config=$login.scram.ScramLoginModule required;
log.dirs=$data/log
auto.create.topics.enable=false
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
group.initial.rebalance.delay.ms=0
PROPERTIES

kafka() {
  main=$1
  shift
  java "-Xmx${KAFKA_HEAP:-512m}" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$lib/*" "$main" "$@"
}
if [ ! -e "$data/log/meta.properties" ]; then
  kafka kafka.tools.StorageTool format --cluster-id "$(kafka kafka.tools.StorageTool random-uuid)" --config "$data/server.properties" \
    --add-scram "SCRAM-SHA-256=[name=$user,password=$password]" --add-scram "SCRAM-SHA-512=[name=$user,password=$password]" >&2
fi
exec java "-Xmx${KAFKA_HEAP:-512m}" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$lib/*" kafka.Kafka "$data/server.properties"
