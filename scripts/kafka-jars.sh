#!/bin/sh
# kafka-jars.sh JARS: downloads Apache Kafka and what it needs (46 jars, 43 MB) from Maven Central into JARS/VERSION/lib, unless
# they are there, and checks them against kafka-VERSION.sha256 beside this script. Prints the folder. Needs Maven.
#
# KAFKA_VERSION chooses another release; one without a list of checksums is refused unless KAFKA_UNCHECKED=1.
set -eu
if [ $# -ne 1 ]; then
  echo "usage: kafka-jars.sh JARS" >&2
  exit 2
fi
version=${KAFKA_VERSION:-4.1.1}
sums=$(cd "$(dirname "$0")" && pwd)/kafka-$version.sha256
if [ ! -e "$sums" ] && [ "${KAFKA_UNCHECKED:-}" != 1 ]; then
  echo "kafka-jars.sh: no checksums for Kafka $version ($sums); KAFKA_UNCHECKED=1 does without them" >&2
  exit 1
fi
mkdir -p "$1"
jars=$(cd "$1" && pwd)/$version

if [ ! -e "$jars/complete" ]; then
  rm -rf "$jars"
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
  if [ -e "$sums" ]; then
    (cd "$jars/lib" && sha256sum --quiet --strict -c "$sums") >&2
    if [ "$(ls "$jars/lib" | wc -l)" -ne "$(wc -l <"$sums")" ]; then
      echo "kafka-jars.sh: $jars/lib holds jars that $sums does not list" >&2
      exit 1
    fi
  fi
  touch "$jars/complete"
fi
echo "$jars/lib"
