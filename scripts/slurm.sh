#!/usr/bin/env bash
# Installs Slurm's and MUNGE's programs out of Debian's packages slurm-wlm and munge, for the tests of Slurm (tests/cluster), which
# start a cluster of their own. Needs root; safe to repeat, and then needs no network. Where they cannot be had the script says
# so and ends with 3.
set -euo pipefail

TIMEOUT_S=300 # of each call of apt-get

say() { printf 'slurm: %s\n' "$1"; }

there() { for program in munged slurmctld slurmd sbatch; do command -v $program >/dev/null || return 1; done; }

there && exit 0
command -v apt-get >/dev/null || { say "not to be had: it comes from Debian's package slurm-wlm, and there is no apt-get here"; exit 3; }
[ "$(id -u)" = 0 ] || { say "not to be had: apt-get and Slurm's daemons need root"; exit 3; }
log=$(mktemp) && trap 'rm -f "$log"' EXIT
install() { DEBIAN_FRONTEND=noninteractive timeout $TIMEOUT_S apt-get -q install -y slurm-wlm munge >>"$log" 2>&1; }

say "Debian's packages slurm-wlm and munge"
if ! install && ! { timeout $TIMEOUT_S apt-get -q update >>"$log" 2>&1 && install; }; then
  say "not to be had: $(tail -n 1 "$log")"
  exit 3
fi
say "$(slurmctld -V)"
