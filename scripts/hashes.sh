#!/usr/bin/env bash
# Writes requirements/hashes.lock: the hashes of every file of every pinned version, for all platforms, as the index states
# them. Run through `make hashes`, after a version in requirements/ has changed. torch's CPU build is not on that index.
set -euo pipefail
cd "$(dirname "$0")/.."

[ -x .venv-hashes/bin/uv ] || { .venv/bin/python -m venv .venv-hashes; .venv-hashes/bin/pip install --quiet uv==0.13.9; }
pins=.venv-hashes/pins.in
cat $(ls requirements/*.lock | grep -v /hashes.lock) | grep -v '^torch==' | sort -u > "$pins"
.venv-hashes/bin/uv pip compile "$pins" --no-deps --universal --python-version 3.11 --generate-hashes --no-header \
  --no-annotate --quiet --output-file requirements/hashes.lock
