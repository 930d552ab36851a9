#!/usr/bin/env bash
# Installs Debian's package chromium, for the tests of the page (tests/integration/test_ui_browser.py). Run through `make test`;
# safe to repeat, and then needs no network. Where no Chromium can be had the script says so and ends with 3: nothing else in
# Sluice needs it.
set -euo pipefail

TIMEOUT_S=600 # of each call of apt-get; the package and what it needs are about 100 MB

say() { printf 'chromium: %s\n' "$1"; }

for name in chromium chromium-browser google-chrome; do
  command -v $name >/dev/null && exit 0
done
if ! command -v apt-get >/dev/null || [ "$(id -u)" -ne 0 ]; then
  say "not to be had: it comes from Debian's package chromium, which root installs with apt-get; one on the PATH does as well"
  exit 3
fi

log=$(mktemp) && trap 'rm -f "$log"' EXIT
apt() { DEBIAN_FRONTEND=noninteractive timeout $TIMEOUT_S apt-get -q -y -o Acquire::Retries=1 "$@" >>"$log" 2>&1; }

say "Debian's package chromium"
if ! apt install --no-install-recommends chromium && ! { apt update && apt install --no-install-recommends chromium; }; then
  say "not to be had: $(tail -n 1 "$log")"
  exit 3
fi
say "$(chromium --version 2>/dev/null | head -n 1)"
