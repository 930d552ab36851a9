"""What a cluster of Kubernetes gets of a run: byte for byte as kept, confined, without a secret; the chart is made of it."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts import helm_chart
from sluice import __version__
from sluice.errors import ConfigError
from sluice.launch.submit.kubernetes import state_of
from sluice.launch.submit.kubernetes_text import rendered
from sluice.launch.submit.port import JobState
from sluice.rpc.access import Role
from tests.unit.submit.kubernetes_cases import CASES, KEPT, submission, text

by_case = pytest.mark.parametrize("case", CASES)


def objects(case: str) -> list[Any]:
    return [found for found in yaml.safe_load_all(text(case)) if found]


def below(tree: Any) -> Iterator[Mapping[str, Any]]:
    """Every mapping within."""
    if isinstance(tree, dict):
        yield tree
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from below(inner)


def pods(case: str) -> dict[str, Mapping[str, Any]]:
    """The pods' specs by the name of their first container."""
    found = [tree for tree in below(objects(case)) if "containers" in tree]
    return {f"{pod['containers'][0]['name']}-{number}": pod for number, pod in enumerate(found)}


@by_case
def test_the_manifests_are_those_kept(case: str) -> None:
    assert text(case) == (KEPT / f"{case}.yaml").read_text(encoding="utf-8"), (
        "look at the difference; python -m tests.unit.submit.kubernetes_cases keeps the new text"
    )


@by_case
def test_every_pod_is_confined_and_asks_for_the_gpus_of_its_processes(case: str) -> None:
    gpus = {"jobset": {"learner": 8, "control": 8, "rollout": 2}, "rayjob": {"ray-worker": 1}}.get(case, {})
    for name, pod in pods(case).items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert (pod["enableServiceLinks"], pod["shareProcessNamespace"]) == (False, True)
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        limits = pod["containers"][0].get("resources", {}).get("limits", {})
        assert limits.get("nvidia.com/gpu") == gpus.get(name.rpartition("-")[0])


@by_case
def test_secrets_are_named_and_each_pod_sees_those_of_its_roles_alone(case: str) -> None:
    assert {found["kind"] for found in objects(case)} & {"Secret"} == set()
    prefix = "math-" if case == "jobset" else "sluice-"
    launcher = {Role.COORDINATOR, Role.LEARNER, Role.OPERATOR}
    roles = {"control": launcher, "rollout": {Role.ROLLOUT}, "reward": {Role.REWARD}, "learner": set()}
    for name, pod in pods(case).items():
        named = {volume["secret"]["secretName"].removeprefix(prefix) for volume in pod["volumes"] if "secret" in volume}
        assert named == roles.get(name.rpartition("-")[0], set(Role) - {Role.METRICS, Role.ENVIRONMENT})


def test_what_is_probed_is_probed_with_the_health_service_and_rewards_have_no_way_out() -> None:
    for name, pod in pods("job").items():
        (container,) = pod["containers"]
        probe = container.get("livenessProbe") or container["readinessProbe"]
        assert "sluice.rpc.probe" in probe["exec"]["command"]
        assert ("livenessProbe" in container) == (not name.startswith("control")), (
            "the launcher watches its own children"
        )
    (reward,) = [o for o in objects("job") if (o["kind"], o["metadata"]["name"]) == ("NetworkPolicy", "demo-1-reward")]
    assert reward["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert [rule["ports"][0]["port"] for rule in reward["spec"]["egress"]] == [18050, 53]


def test_the_images_are_those_of_this_version() -> None:
    assert submission().config.kubernetes.tag == __version__


def test_the_chart_is_made_of_the_manifests() -> None:
    made = dict(helm_chart.files())
    kept = {str(path.relative_to(helm_chart.CHART)): path.read_text() for path in helm_chart.CHART.rglob("*.*")}
    assert {name: kept.get(name) for name in made} == made, "python scripts/helm_chart.py"
    assert kept.keys() - made.keys() == {"templates/NOTES.txt"}


def test_a_template_of_ones_own_is_filled_and_its_fields_are_checked(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("kind: Job\nname: @{name}\nrecipe: |\n  @{recipe}\npod:\n  @{control_pod}\n")
    (filled,) = rendered(submission(template=own)).values()
    tree = yaml.safe_load(filled)
    assert tree["name"] == "demo-1"
    assert yaml.safe_load(tree["recipe"])["run"]["name"] == "demo"
    assert tree["pod"]["spec"]["containers"][0]["name"] == "control"
    own.write_text("kind: Job\nname: @{eman}\n")
    with pytest.raises(ConfigError) as refused:
        rendered(submission(template=own))
    unknown, *missing = str(refused.value).splitlines()
    assert f"{own}, line 2: there is no field @{{eman}}; there are" in unknown
    assert [line.split("has no field ")[1].split(",")[0] for line in missing] == ["@{name}", "@{recipe}"]
    with pytest.raises(ConfigError, match=r"--template: .*none cannot be read"):
        rendered(submission(template=tmp_path / "none"))


def test_a_run_directory_beside_the_claim_and_a_name_too_long_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"--run-dir: must lie under /data/runs, .* got /home/me/runs/x"):
        rendered(submission(run_dir="/home/me/runs/x"))
    with pytest.raises(ConfigError, match=r"run\.name: .* at most 45 letters, got l+ with 46"):
        rendered(submission(name="l" * 46))
    assert "name: run-7b" in rendered(submission(name="7B"))["job.yaml"]


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({}, JobState.WAITING),
        ({"status": {"active": 1, "ready": 0}}, JobState.WAITING),
        ({"status": {"active": 1, "ready": 1}}, JobState.RUNNING),
        ({"status": {"replicatedJobsStatus": [{"name": "control", "ready": 1}]}}, JobState.RUNNING),
        ({"status": {"conditions": [{"type": "Complete", "status": "True"}]}}, JobState.FINISHED),
        ({"status": {"conditions": [{"type": "Completed", "status": "True"}]}}, JobState.FINISHED),
        ({"status": {"conditions": [{"type": "Failed", "status": "True"}]}}, JobState.FAILED),
        ({"status": {"conditions": [{"type": "Failed", "status": "False"}]}}, JobState.WAITING),
        ({"spec": {"suspend": True}, "status": {}}, JobState.STOPPED),
        ({"status": {"jobStatus": "RUNNING"}}, JobState.RUNNING),
        ({"status": {"jobStatus": "SUCCEEDED"}}, JobState.FINISHED),
        ({"status": {"jobStatus": "FAILED"}}, JobState.FAILED),
    ],
)
def test_the_state_of_a_job_is_what_its_controller_has_written(found: Mapping[str, Any], state: JobState) -> None:
    assert state_of(found) is state
