"""A run on a real cluster of Kubernetes: the chart, images of ours, pods and a node that go, the end, the ledger.

The cluster is the one of KUBECONFIG, whoever made it (docs/clusters.md); one node of it gets lost.
"""

import json
import os
import tarfile
import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sluice.testing import assert_eventually_blocking
from tests.chaos.verdict import problems
from tests.cluster.kubernetes_cluster import ROOT, Namespace, own_namespace

pytestmark = [pytest.mark.cluster, pytest.mark.needs("kubernetes"), pytest.mark.timeout(3600)]

STEPS = 20
SETTINGS = {
    "run.total_steps": STEPS,
    "eval.prompts": 16,
    "eval.n": 2,
    "eval.every_steps": 0,
    "learner.checkpoint_every_steps": 2,
    "model.path": "/data/models/base",
    "kubernetes.prepare": "python -m services.learner.sft_base.build --out /data/models/base",
    "kubernetes.claim_size": "1Gi",
    "kubernetes.images": os.environ.get("KUBERNETES_IMAGES", "sluice-"),
}
LOOK_EVERY_S = 3.0
PATIENCE_S = 900.0
"""For what takes a loaded machine of two cores its time: a pod that loads a model, twenty steps."""

READER = """\
apiVersion: v1
kind: Pod
metadata: {{name: reader}}
spec:
  restartPolicy: Never
  automountServiceAccountToken: false
  securityContext: {{runAsNonRoot: true, runAsUser: 10001, runAsGroup: 10001}}
  containers:
  - name: reader
    image: {image}
    command: [sleep, "3600"]
    volumeMounts: [{{name: data, mountPath: /data, readOnly: true}}]
  volumes: [{{name: data, persistentVolumeClaim: {{claimName: demo-data, readOnly: true}}}}]
"""


@pytest.fixture
def namespace(tmp_path: Path) -> Iterator[Namespace]:
    with own_namespace(tmp_path) as namespace:
        try:
            yield namespace
        finally:
            print(namespace.told())


def test_a_run_outlives_its_pods_and_a_node_and_closes_its_ledger(namespace: Namespace, tmp_path: Path) -> None:
    began_s, node = time.monotonic(), os.environ["KUBERNETES_NODE"]

    def until(condition: Callable[[], bool], what: str) -> None:
        assert_eventually_blocking(
            lambda: condition() or bool(time.sleep(LOOK_EVERY_S)), within_s=PATIENCE_S, what=what
        )
        print(f"{time.monotonic() - began_s:5.0f} s  {what}", flush=True)

    def trains() -> None:
        step = reached()
        until(lambda: namespace.status()[0] > step, f"the run is beyond step {step}")

    def reached() -> int:
        steps = namespace.status()[0]
        assert steps >= 0, namespace.told()
        return steps

    def replicas(role: str) -> int:
        return namespace.find("deployment", f"demo-{role}")["spec"]["replicas"]

    namespace.kubectl("cordon", node)
    install(namespace)
    until(lambda: namespace.control() is not None, "the control pod runs, with a model and a claim of its own")
    namespace.kubectl("uncordon", node)
    until(lambda: namespace.status()[0] > 0, "a step is trained")

    namespace.in_control("sluice", "pause")  # so that the run is not over before pods have loaded their models
    namespace.in_control("sluice", "scale", "rollout", "3")
    until(lambda: len(namespace.ready("rollout")) == 3, "three rollouts are at work")
    assert replicas("rollout") == 3
    gone = {name for name, pod in namespace.pods("rollout").items() if pod["spec"]["nodeName"] == node}
    assert gone, namespace.told()
    namespace.in_control("sluice", "resume")
    trains()

    namespace.kubectl("delete", "node", node)
    namespace.in_control("sluice", "pause")
    until(lambda: not gone & namespace.pods("rollout").keys(), "the pods of the node that was deleted are gone")
    until(lambda: len(namespace.ready("rollout") - gone) == 3, "others are at work in their place")
    namespace.in_control("sluice", "resume")
    trains()

    namespace.in_control("sluice", "scale", "rollout", "1")
    until(lambda: len(namespace.pods("rollout")) == 1, "one rollout is left")
    (first,), step = namespace.pods("control"), reached()
    namespace.kubectl("delete", "pod", first, "--wait=false")
    until(lambda: bool(namespace.pods("control").keys() - {first}), "the Job has made another control pod")
    until(lambda: namespace.status()[0] > step, f"the run has gone on from step {step}")

    until(lambda: bool(condition_of(namespace)), "the Job has ended")
    assert condition_of(namespace) == "Complete"
    until(lambda: not namespace.pods("rollout") and not namespace.pods("reward"), "no rollout or reward is left")
    assert (replicas("rollout"), replicas("reward")) == (0, 0)

    run_dir = fetch_run(namespace, tmp_path)
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["steps"], summary["groups"]["closed"]) == (STEPS, True)
    assert problems(run_dir) == []


def install(namespace: Namespace) -> None:
    """The chart with the demo's recipe, as docs/clusters.md types it."""
    recipe = "recipe:\n" + "".join(
        f"  {line}\n" for line in (ROOT / "recipes" / "cpu-demo.yaml").read_text().splitlines()
    )
    sets = [part for key, value in SETTINGS.items() for part in ("--set-json", f"recipe.{key}={json.dumps(value)}")]
    namespace.helm(*sets, said=recipe)


def condition_of(namespace: Namespace) -> str:
    """`Complete` or `Failed` of the Job; empty before its end."""
    conditions = namespace.find("job", "demo")["status"].get("conditions") or ()
    return next((one["type"] for one in conditions if one["status"] == "True" and one["type"] in _ENDS), "")


_ENDS = ("Complete", "Failed")


def fetch_run(namespace: Namespace, folder: Path) -> Path:
    """The run directory out of the claim, by a pod that mounts it."""
    image = namespace.find("job", "demo")["spec"]["template"]["spec"]["containers"][0]["image"]
    namespace.kubectl("apply", "-f", "-", said=READER.format(image=image))
    namespace.kubectl("wait", "--for=condition=Ready", "pod/reader", "--timeout=240s", within_s=300)
    packed = namespace.kubectl("exec", "reader", "--", "sh", "-c", "tar -C /data/runs -cz demo | base64", within_s=120)
    (folder / "run.tar.gz").write_bytes(b64decode(packed))
    with tarfile.open(folder / "run.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "demo"
