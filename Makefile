# Two commands do everything on a fresh machine: `make demo` and `make test`. Each sets itself up.
.DEFAULT_GOAL := help
PY := .venv/bin/python
export OMP_NUM_THREADS ?= 1
# Hundreds of processes start in a test run: each would compile Sluice's own modules again.
unexport PYTHONDONTWRITEBYTECODE
JOBS ?= 2
PARALLEL := -n $(JOBS) --no-loadscope-reorder
UNIT = $(PY) -m pytest -q -m "not integration and not e2e and not chaos and not gpu"
TORCH := $(addprefix tests/unit/,coordinator dapo learner prompts rollout sizing telemetry weights test_rope.py)

.PHONY: help setup typescript promtool chromium demo demo-llm demo-turns test tests test-oldest chaos compose-test test-cluster test-kubernetes fuzz audit hashes check static unit unit-torch unit-rest protos protos-release format bench bench-learner bench-system clean

help:            ## this list
	@grep -E '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup:           ## make .venv (ACCEL=cpu|cuda|cuda12|none)
	@scripts/setup.sh

typescript:      ## build the examples in TypeScript, where node is
	@scripts/typescript.sh || [ $$? -eq 3 ]

promtool: setup  ## Prometheus's promtool in .venv, where Debian's packages are
	@scripts/promtool.sh || [ $$? -eq 3 ]

chromium: setup  ## Debian's Chromium, for the tests of the page, where apt-get and root are
	@scripts/chromium.sh || [ $$? -eq 3 ]

demo: setup      ## teach a small model to add: four services, two cores, a few minutes
	@.venv/bin/sluice demo $(ARGS)

demo-llm: setup  ## teach a real model, SmolLM2-135M, to add: 93 MB more to fetch, some twenty minutes on two idle cores
	@scripts/smollm2.sh $(ARGS)
	@.venv/bin/sluice demo-llm $(ARGS)

demo-turns: setup ## teach a small model to use a calculator, in episodes of two turns: two cores, a few minutes
	@.venv/bin/sluice demo-turns $(ARGS)

test: setup typescript promtool chromium ## static, and every test but chaos, long, compose and cluster; the last lines of pytest name what this machine lacks
	@scripts/check.sh static tests

tests:
	$(PY) -m pytest $(PARALLEL) -m "not chaos and not long and not compose and not cluster" $(ARGS)

test-oldest:     ## the learner's and the transformers engine's tests with Python 3.12, torch 2.11, transformers 5.17 (PYTHON=...)
	@scripts/oldest.sh $(ARGS)

chaos: setup     ## kill, freeze and cut off everything, beside liars too, over seeded runs, and all that takes long (ARGS="--runs 16", ARGS="--seed 7 -k processes")
	$(PY) -m pytest -v -p no:randomly -m "chaos or long" tests/chaos tests/e2e tests/integration $(ARGS)

compose-test: setup ## containers for real: build, train, scale, kill, cut off (needs Docker and Compose v2; minutes)
	$(PY) -m pytest -v -s -m compose tests/compose $(ARGS)

test-cluster: setup ## every engine's promises and runs, on clusters that the tests start: Ray and Slurm; manifests of Kubernetes
	@scripts/ray.sh
	@scripts/slurm.sh || [ $$? -eq 3 ]
	@scripts/kubernetes_tools.sh
	$(PY) -m pytest -v -p no:randomly -m cluster tests/cluster $(ARGS)

test-kubernetes: setup ## a run on the cluster of KUBECONFIG: pods and the node KUBERNETES_NODE deleted (docs/clusters.md)
	@scripts/kubernetes_tools.sh
	@scripts/kubernetes.sh
	$(PY) -m pytest -v -s -p no:randomly -m cluster tests/cluster/test_kubernetes_run.py $(ARGS)

fuzz: setup      ## 10,000 malformed, oversized, replayed and reordered messages to every method of every service
	SLUICE_FUZZ_MESSAGES=10000 $(PY) -m pytest -q -m integration tests/integration/test_security_fuzz.py $(ARGS)

hashes: setup    ## requirements/hashes.lock anew, after a pinned version has changed (asks pypi.org)
	@scripts/hashes.sh

audit: setup     ## known vulnerabilities of the pinned dependencies (asks pypi.org and osv.dev)
	@scripts/audit.sh

check: setup     ## lint, types, architecture, proto drift and the unit tests, at the same time: some 70 s on two idle cores
	@scripts/check.sh static unit-torch unit-rest

static: setup    ## lint, types, architecture and proto drift, without a test
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/codespell sluice services tests docs recipes README.md CHANGELOG.md
	.venv/bin/lint-imports --no-cache
	.venv/bin/buf lint
	.venv/bin/buf format --diff --exit-code
	.venv/bin/buf breaking --against protos/sluice.v1.binpb
	$(PY) scripts/protos.py --check
	.venv/bin/pyrefly check --min-severity error --output-format min-text

unit: setup      ## the unit tests
	@scripts/check.sh unit-torch unit-rest

# Two processes, each with half the files: a worker of pytest-xdist imports them all, and torch and transformers take longest.
unit-torch:
	$(UNIT) $(TORCH)

unit-rest:
	$(UNIT) $(TORCH:%=--ignore=%) tests/unit

protos: setup    ## generate sluice/v1 from protos/
	$(PY) scripts/protos.py

protos-release: setup ## what buf breaking compares with from now on: at a release, after raising sluice.PROTOCOL_VERSION if it breaks
	.venv/bin/buf build --exclude-source-info -o protos/sluice.v1.binpb

format: setup    ## format and fix what can be fixed
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: setup     ## every benchmark; prints a table, writes benchmarks/results/*.json
	$(PY) -m benchmarks.run $(ARGS)

bench-learner: setup ## the learner's: loss and head, packing, shared prompts, loading, mixtures of experts, predicted memory, and the race against TRL (about an hour on 2 idle cores)
	$(PY) -m benchmarks.run learner_loss learner_packing shared_prompts load_in_shards mixtures sizing
	$(PY) -m benchmarks.vs_trl

bench-system: setup ## coordinator against a bare relay, traces, overlap, episodes, weight push, staleness, reward under load, recovery, a long run (about an hour and a half on 2 idle cores)
	GRPC_ENABLE_FORK_SUPPORT=0 $(PY) -m benchmarks.run coordinator_relay traces overlap episodes weight_push staleness_demo staleness_sweep reward_load recovery long_run

clean:           ## remove .venv and everything made by tests and runs
	rm -rf .venv .venv-audit .venv-hashes .venv-kubernetes .venv-oldest build runs .pytest_cache .ruff_cache .hypothesis
	cd examples/reward-typescript && rm -rf dist node_modules src/generated ../environment-typescript/dist ../environment-typescript/node_modules
