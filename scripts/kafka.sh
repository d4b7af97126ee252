#!/bin/sh
# kafka.sh JARS DATA PORT: one real Apache Kafka broker on 127.0.0.1:PORT until it is told to stop (SIGTERM, Ctrl-C). JARS is
# a folder that keeps what Maven downloads, DATA a folder for the log; a second start with the same DATA goes on with it.
# Needs Java 17 or later and Maven. The end-to-end tests run against it with WEFT_TEST_KAFKA=127.0.0.1:PORT.
#
# PORT+1 is the controller's. KAFKA_VERSION and KAFKA_HEAP choose another release and another heap.
set -eu
if [ $# -ne 3 ]; then
  echo "usage: kafka.sh JARS DATA PORT" >&2
  exit 2
fi
version=${KAFKA_VERSION:-4.1.1}
mkdir -p "$1" "$2"
jars=$(cd "$1" && pwd)/$version
data=$(cd "$2" && pwd)
port=$3

if [ ! -e "$jars/complete" ]; then
  mkdir -p "$jars"
  cat >"$jars/pom.xml" <<POM
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>weft</groupId>
  <artifactId>broker</artifactId>
  <version>1</version>
  <packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>1.7.36</version></dependency>
  </dependencies>
</project>
POM
  mvn -q -B -Dstyle.color=never -f "$jars/pom.xml" dependency:copy-dependencies -DincludeScope=runtime "-DoutputDirectory=$jars/lib" >&2
  touch "$jars/complete"
fi

cat >"$data/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$port
controller.listener.names=CONTROLLER
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
  java "-Xmx${KAFKA_HEAP:-512m}" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$jars/lib/*" "$main" "$@"
}
if [ ! -e "$data/log/meta.properties" ]; then
  kafka kafka.tools.StorageTool format --cluster-id "$(kafka kafka.tools.StorageTool random-uuid)" --config "$data/server.properties" >&2
fi
exec java "-Xmx${KAFKA_HEAP:-512m}" -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "$jars/lib/*" kafka.Kafka "$data/server.properties"
