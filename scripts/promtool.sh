#!/usr/bin/env bash
# Puts Prometheus's promtool into .venv/bin, out of Debian's package prometheus, for the tests of deploy/prometheus. Run
# through `make test`; safe to repeat, and then needs no network. Needs no root: nothing outside .venv changes.
# Where no promtool can be had the script says so and ends with 3: nothing else in Sluice needs it.
set -euo pipefail
cd "$(dirname "$0")/.."

VERSION=2.42.0 # Debian 12's; a distribution without this version gives its own
TIMEOUT_S=90   # of each call of apt-get

say() { printf 'promtool: %s\n' "$1"; }

stamp=.venv/.promtool-$VERSION
[ -f "$stamp" ] && [ -x .venv/bin/promtool ] && exit 0
for tool in apt-get dpkg-deb; do
  command -v $tool >/dev/null && continue
  command -v promtool >/dev/null && exit 0
  say "not to be had: it comes from Debian's package prometheus, and there is no $tool here; a promtool on the PATH does as well"
  exit 3
done

work=$(mktemp -d) && trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
apt() { (cd "$work" && timeout $TIMEOUT_S apt-get -q -o APT::Sandbox::User=root -o Acquire::Retries=1 "$@" >>log 2>&1); }
own_lists=(-o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache")
fetch() { apt "$@" download "prometheus=$VERSION*" || apt "$@" download prometheus; }

say "Debian's package prometheus"
if ! fetch && ! { apt "${own_lists[@]}" update && fetch "${own_lists[@]}"; }; then
  command -v promtool >/dev/null && { say "taken from the PATH: $(tail -n 1 "$work/log")"; exit 0; }
  say "not to be had: $(tail -n 1 "$work/log")"
  exit 3
fi
dpkg-deb --fsys-tarfile "$work"/prometheus_*.deb | tar -x -C "$work" ./usr/bin/promtool
install -m 755 "$work/usr/bin/promtool" .venv/bin/promtool
rm -f .venv/.promtool-*
touch "$stamp"
say "$(.venv/bin/promtool --version 2>&1 | sed -n 's/^promtool, //p')"
