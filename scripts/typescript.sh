#!/usr/bin/env bash
# Installs examples/reward-typescript from its lock file, and builds it and examples/environment-typescript. Run through `make test`; safe to repeat.
# Where Node.js or its registry is missing the script says so and ends with 3: nothing else in Sluice needs them. In CI
# (CI=true) the registry must be there. With --check the script ends with 0 where the example is built, and builds nothing.
set -euo pipefail
cd "$(dirname "$0")/../examples/reward-typescript"

say() { printf 'typescript: %s\n' "$1"; }

command -v node >/dev/null && command -v npm >/dev/null || { say "no node and npm on the PATH; install Node.js 20 or newer"; exit 3; }

stamp=node_modules/.sluice-$(cat package.json package-lock.json tsconfig.json src/*.ts test/*.ts ../environment-typescript/*.json ../environment-typescript/src/*.ts ../../protos/sluice/v1/*.proto | cksum | cut -d' ' -f1)
[ -f "$stamp" ] && [ -d dist ] && exit 0
[ "${1:-}" = --check ] && exit 3

say "npm ci"
if ! npm ci --no-audit --no-fund --loglevel=error; then
  say "npm ci failed; without its registry the example cannot be built here"
  [ -z "${CI:-}" ] || exit 1
  exit 3
fi
rm -rf dist ../environment-typescript/dist
npm run --silent build
npm --prefix ../environment-typescript run --silent build
touch "$stamp"
