"""`sluice submit` on Kubernetes through the real kubectl, against as much of an API server as kubectl needs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.errors import ConfigError, Forbidden, NotFound
from sluice.launch.submit.kubernetes import KubernetesSubmitter
from sluice.launch.submit.port import JobState
from sluice.rpc.access import Role
from tests.unit.submit.api_server import Cluster, api_server
from tests.unit.submit.kubernetes_cases import submission

pytestmark = [pytest.mark.integration, pytest.mark.needs("kubectl")]

CORE = "/api/v1/namespaces/team"
JOB = "/apis/batch/v1/namespaces/team/jobs/demo-1"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster with the namespace `team` and every role's Secret, in the context `here`."""
    with api_server() as found:
        tree = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": found.server}}],
            "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team"}}],
            "users": [{"name": "u", "user": {"token": "none"}}],
            "current-context": "here",
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(tree))
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
        monkeypatch.setenv("HOME", str(tmp_path))  # kubectl keeps what it has discovered there
        found.add(CORE, kind="Namespace", apiVersion="v1")
        for role in Role:
            found.add(f"{CORE}/secrets/sluice-{role}", kind="Secret", apiVersion="v1")
        yield found


def test_a_run_is_handed_in_stopped_and_handed_in_again_and_not_twice(cluster: Cluster) -> None:
    queue, run = KubernetesSubmitter(), submission()
    job = queue.submit(run)
    assert job == "job/demo-1.team@here"
    assert cluster.names("deployments") == {"demo-1-rollout", "demo-1-reward"}
    assert cluster.names("jobs") == cluster.names("services") == cluster.names("configmaps") == {"demo-1"}
    assert queue.state(job) is JobState.WAITING
    cluster.objects[JOB]["status"] = {"active": 1, "ready": 1}
    assert queue.state(job) is JobState.RUNNING
    with pytest.raises(ConfigError, match=rf"{job} is running already; `sluice stop --job kubernetes/{job}` ends it"):
        queue.submit(run)
    queue.stop(job)
    assert queue.state(job) is JobState.STOPPED
    deployments = [one for path, one in cluster.objects.items() if "/deployments/" in path]
    assert [one["spec"]["replicas"] for one in deployments] == [0, 0]
    assert queue.submit(run) == job
    assert queue.state(job) is JobState.WAITING, "the suspended job made room for a new one"
    assert [one["spec"]["replicas"] for path, one in cluster.objects.items() if "/deployments/" in path] == [1, 1]


def test_the_log_is_the_control_pods_and_is_followed_until_the_job_has_ended(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, pod = KubernetesSubmitter(), f"{CORE}/pods/demo-1-abcde"
    labels = {
        "app.kubernetes.io/name": "sluice",
        "app.kubernetes.io/instance": "demo-1",
        "app.kubernetes.io/component": "control",
    }
    cluster.add(JOB, kind="Job", apiVersion="batch/v1", status={"ready": 1})
    assert list(queue.logs("job/demo-1.team@here", follow=False)) == [], "no pod yet"

    cluster.add(pod, kind="Pod", apiVersion="v1", spec={"containers": [{"name": "control"}]})
    cluster.objects[pod]["metadata"] |= {"labels": labels, "namespace": "team"}
    cluster.logs[pod] = ["step 1\n", "step 2\n"]
    monkeypatch.setattr("sluice.launch.submit.kubernetes._LOOK_EVERY_S", 0.0)
    lines = queue.logs("job/demo-1.team@here", follow=True)
    assert [next(lines), next(lines)] == ["step 1", "step 2"]
    cluster.logs[pod] = ["step 3\n"]  # what was written since
    cluster.objects[JOB]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    assert list(lines) == ["step 3"]


def test_what_the_cluster_lacks_is_named_and_nothing_is_made(cluster: Cluster) -> None:
    queue, before = KubernetesSubmitter(), set(cluster.objects)
    with pytest.raises(
        ConfigError, match=r"kubernetes\.namespace: other is not there .* `kubectl create namespace other`"
    ):
        queue.submit(submission("kubernetes.namespace=other"))
    with pytest.raises(NotFound, match=r"there is no job/math\.team@here"):
        queue.state("job/math.team@here")
    del cluster.objects[f"{CORE}/secrets/sluice-reward"]
    cluster.add(
        f"{CORE}/persistentvolumeclaims/mine", kind="PersistentVolumeClaim", spec={"accessModes": ["ReadWriteOnce"]}
    )
    several = ("launch.learner_nnodes=2", "launch.learner_rdzv_endpoint=control:29400", "kubernetes.claim=mine")
    cluster.minor = "20"
    with pytest.raises(ConfigError) as refused:
        queue.submit(submission(*several))
    cluster.minor = "26+"
    version, claim, jobset, secret = str(refused.value).splitlines()
    assert "kubernetes.context: here is Kubernetes v1.20.0, the run's Job needs 1.26 for podFailurePolicy" in version
    assert "kubernetes.claim: mine must be ReadWriteMany" in claim
    assert "launch.learner_nnodes > 1 needs JobSet, and the context here has nothing of jobset.x-k8s.io" in jobset
    assert "there is no Secret sluice-reward in team" in secret
    assert "create secret generic sluice-reward --from-file=creds/reward" in secret
    cluster.add(f"{CORE}/secrets/sluice-reward", kind="Secret", apiVersion="v1")
    cluster.refused[f"GET {CORE}"] = (
        403,
        "Forbidden",
        'namespaces "team" is forbidden',
    )  # who may not look is not told off
    cluster.refused[f"POST {JOB}"] = (403, "Forbidden", 'jobs "demo-1" is forbidden: exceeded quota')
    with pytest.raises(Forbidden, match="exceeded quota"):
        queue.submit(submission())
    claims = {f"{CORE}/persistentvolumeclaims/{name}" for name in ("mine", "demo-1-data")}
    assert set(cluster.objects) - claims == before, "what was made before the refusal is gone, but for the claim"
