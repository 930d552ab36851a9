"""What a run is in a cluster of Kubernetes, as text: the files under manifests/ with their fields' values.

The chart deploy/helm is made of the same files (scripts/helm_chart.py), so that both give the same objects. No Secret is
written: the pods name those that `kubectl create secret` has made.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from sluice.config.schema import Config
from sluice.config.yaml_text import print_yaml
from sluice.errors import ConfigError
from sluice.launch.submit.port import Submission
from sluice.launch.submit.template import fill, read_template

DATA = Path("/data")
"""Where every pod has the claim mounted, but those of rewards."""
RUNS = DATA / "runs"

_MANIFESTS = Path(__file__).parent / "manifests"
_PARTS = {
    "control_pod": "control-pod.yaml",
    "machine_pod": "machine-pod.yaml",
    "ray_pod": "ray-pod.yaml",
    "ray_container": "ray-container.yaml",
}
"""Fields that are texts with fields of their own."""
_MOST_LETTERS = 45
"""Of a name: Kubernetes makes names of pods of it, with at most 63."""
_NEEDED = ("name", "recipe")
_MARGIN_S = 20
"""Beyond launch.grace_s, the imports and last files of a process."""


def rendered(submission: Submission) -> dict[str, str]:
    """The manifests of a run, by the names of their files. Raises ConfigError."""
    fields = fields_of_run(submission)
    if submission.template is not None:
        text = read_template(submission.template, known=fields, needed=_NEEDED)
        return {"run.yaml": fill(text, fields)}
    return {name: f"---\n{fill(manifest(name), fields)}" for name in _files(submission.config)}


def manifest(name: str) -> str:
    """The text of a file under manifests/, with its fields."""
    return (_MANIFESTS / name).read_text(encoding="utf-8")


def kind_of(config: Config) -> str:
    """What holds the control pod: `job`, `jobset` for a learner on several machines, `rayjob` where Ray places services."""
    if config.launch.engine == "ray":
        return "rayjob"
    return "jobset" if config.launch.learner_nnodes > 1 else "job"


def name_of(submission: Submission) -> str:
    """The run's name as Kubernetes takes it. Raises ConfigError for one that is too long."""
    name = submission.name.lower()
    name = name if name[:1].isalpha() else f"run-{name}"
    if len(name) > _MOST_LETTERS:
        raise ConfigError(
            f"run.name: Kubernetes makes names of it, so the run directory's name must have at most {_MOST_LETTERS} letters, "
            f"got {name} with {len(name)}; give a shorter run.name or --run-dir"
        )
    return name


def _files(config: Config) -> list[str]:
    claim = [] if config.kubernetes.claim else ["claim.yaml"]
    if kind_of(config) == "rayjob":
        return ["recipe.yaml", *claim, "rayjob.yaml"]
    services = ["account.yaml", "service.yaml", "network.yaml", "rollout.yaml", "reward.yaml"]
    return ["recipe.yaml", *claim, *services, f"{kind_of(config)}.yaml"]


def fields_of_run(submission: Submission) -> dict[str, str]:
    """Every field of the manifests with its value for this run. Raises ConfigError."""
    config, name = submission.config, name_of(submission)
    if submission.run_dir.parent != RUNS and RUNS not in submission.run_dir.parents:
        raise ConfigError(
            f"--run-dir: must lie under {RUNS}, which every pod of the run sees, got {submission.run_dir}; leave it out for "
            f"{RUNS / name}"
        )
    recipe = config.model_dump(mode="json", exclude_unset=True)
    recipe.get("launch", {}).pop("learner_rdzv_endpoint", None)  # the pods' environment says where the machines meet
    fields = {
        "name": name,
        "recipe": print_yaml(recipe),
        "run_dir": str(submission.run_dir),
        "run_id": submission.run_dir.name,
        **_services(config),
        **_places(config, name),
    }
    return fields | {part: fill(manifest(file), fields) for part, file in _PARTS.items()}


def _services(config: Config) -> dict[str, str]:
    launch, kubernetes = config.launch, config.kubernetes
    accelerator = "-cuda" if kubernetes.gpu else ""
    images = {
        f"image_{role}": f"{kubernetes.images}{role}{accelerator if role != 'reward' else ''}:{kubernetes.tag}"
        for role in ("launcher", "learner", "rollout", "reward", "ray")
    }
    return images | {
        "machines": str(launch.learner_nnodes),
        "more_machines": str(launch.learner_nnodes - 1),
        "ranks": str(launch.learner_nproc_per_node),
        "learner_resources": _gpus(kubernetes.gpu, launch.learner_nproc_per_node),
        "rollout_resources": _gpus(kubernetes.gpu, config.rollout.tensor_parallel_size),
        "rollout_replicas": str(launch.rollouts),
        "reward_replicas": str(launch.reward_replicas),
        "rollout_threads": str(config.rollout.threads),
        "grace_s": str(int(launch.grace_s) + _MARGIN_S),
        "control_grace_s": str(2 * int(launch.grace_s) + _MARGIN_S),
    }


def _places(config: Config, name: str) -> Mapping[str, str]:
    kubernetes = config.kubernetes
    return {
        "claim": kubernetes.claim or f"{name}-data",
        "claim_size": kubernetes.claim_size,
        "storage_class": json.dumps(kubernetes.storage_class),
        "access_mode": kubernetes.access_mode,
        "credentials": kubernetes.credentials,
        "prepare": json.dumps(kubernetes.prepare),
    }


def _gpus(resource: str | None, number: int) -> str:
    return json.dumps({"limits": {resource: number}} if resource else {})
