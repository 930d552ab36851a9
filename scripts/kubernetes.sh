#!/usr/bin/env bash
# Looks for what tests/cluster/test_kubernetes_run.py needs, and ends with 3 and one line where something is missing. It makes no
# cluster: the test runs on the one of KUBECONFIG, in a namespace of its own, and deletes a node of it. So it must be asked to:
#
#   KUBERNETES_NODE    the node that the test may delete; until its kubelet is started again, it is no part of the cluster
#   KUBERNETES_IMAGES  what stands before ROLE:VERSION in the names of the images, as kubernetes.images; default sluice-
#
# docs/clusters.md says how to get a cluster.
set -euo pipefail
cd "$(dirname "$0")/.."

ANSWER_S=10

missing() { printf 'kubernetes: %s\n' "$1"; exit 3; }

node=${KUBERNETES_NODE:-}
[ -n "$node" ] || missing "KUBERNETES_NODE names no node that the test may delete (docs/clusters.md)"
command -v kubectl >/dev/null || missing "kubectl is not on the PATH"
[ -x .venv-kubernetes/bin/helm ] || missing ".venv-kubernetes/bin/helm is not there; scripts/kubernetes_tools.sh makes it"
ask() { kubectl --request-timeout=${ANSWER_S}s "$@" 2>&1; }
said=$(ask get node "$node" -o name) || missing "no node $node at the cluster of KUBECONFIG: $(tail -n 1 <<<"$said")"
ready=$(ask get nodes --no-headers | grep -c ' Ready ' || true)
[ "$ready" -ge 2 ] || missing "$ready of the cluster's nodes are ready and take pods, two must be"
