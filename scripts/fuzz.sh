#!/bin/sh
# fuzz.sh PACKAGE...: every fuzz target of the packages for FUZZTIME each. Go fuzzes one target of one package at a time.
set -eu
go=${GO:-go}
for package in $("$go" list "$@"); do
  for target in $("$go" test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
    echo "== $package $target"
    "$go" test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-5s}" "$package"
  done
done
