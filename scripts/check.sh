#!/usr/bin/env bash
# check.sh TARGET...: these targets of make at the same time. The last one prints as it goes; what the others printed comes after
# it, or at once where one fails. Fails if one fails.
cd "$(dirname "$0")/.."

said=$(mktemp -d)
trap 'kill "${started[@]}" 2>/dev/null; rm -rf "$said"' EXIT
beside() {
  make --no-print-directory "$1" > "$said/$1" 2>&1 || { cat "$said/$1"; echo "check: make $1 failed" >&2; exit 1; }
}

targets=("$@") last=$(($# - 1)) started=() failed=()
for target in "${targets[@]:0:last}"; do beside "$target" & started+=($!); done
make --no-print-directory "${targets[last]}" || failed+=("${targets[last]}")
for number in "${!started[@]}"; do
  if wait "${started[number]}"; then cat "$said/${targets[number]}"; else failed+=("${targets[number]}"); fi
done
for target in "${failed[@]}"; do echo "check: make $target failed, see above" >&2; done
exit $((${#failed[@]} > 0))
