#!/usr/bin/env bash
# check.sh TARGET: `make static` and `make TARGET` at the same time. What static printed comes after TARGET, or at once where
# static fails. Fails if either fails.
set -uo pipefail
cd "$(dirname "$0")/.."

said=$(mktemp)
trap 'kill "$static" 2>/dev/null; rm -f "$said"' EXIT
{ make --no-print-directory static > "$said" 2>&1 || { cat "$said"; echo "check: make static failed" >&2; exit 1; } } &
static=$!
make --no-print-directory "$1"
code=$?
if wait "$static"; then cat "$said"; else static_failed=1; fi
[ "$code" -eq 0 ] || echo "check: make $1 failed" >&2
[ -z "${static_failed:-}" ] || echo "check: make static failed, see above" >&2
exit $((code || ${static_failed:-0}))
