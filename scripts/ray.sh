#!/usr/bin/env bash
# Installs Ray into .venv, from pinned versions (240 MB). Run through `make test-cluster`, after setup.sh; safe to repeat.
# HASHES=off as in setup.sh.
set -euo pipefail
cd "$(dirname "$0")/.."

stamp=.venv/.ray-$(cksum < requirements/ray.lock | cut -d' ' -f1)
[ -f "$stamp" ] && [ -x .venv/bin/ray ] && exit 0

printf 'ray: Ray, into .venv\n'
pins=.venv/ray-pins.txt
case ${HASHES:-on} in
  on) .venv/bin/python scripts/hashed_pins.py requirements/ray.lock > "$pins"; set -- --require-hashes ;;
  *) cp requirements/ray.lock "$pins"; set -- ;;
esac
.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-warn-conflicts --no-deps "$@" -r "$pins" \
  2> >(grep -v 'is ignored: it is neither' >&2)
rm -f .venv/.ray-*
touch "$stamp"
