#!/usr/bin/env bash
# `make static` and `make unit` at the same time, what they print one after the other. Fails if either fails.
set -uo pipefail
cd "$(dirname "$0")/.."

said=$(mktemp)
trap 'kill "$static" 2>/dev/null; rm -f "$said"' EXIT
make --no-print-directory static > "$said" 2>&1 &
static=$!
make --no-print-directory unit
unit=$?
wait "$static"
code=$?
cat "$said"
[ "$code" -eq 0 ] || echo "check: make static failed" >&2
[ "$unit" -eq 0 ] || echo "check: make unit failed" >&2
exit $((code || unit))
