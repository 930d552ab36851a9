"""The runs whose manifests are kept in manifests/. `python -m tests.unit.submit.kubernetes_cases` makes these anew."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from sluice.config.load import load_config
from sluice.launch.submit.kubernetes_text import rendered
from sluice.launch.submit.port import Submission

KEPT = Path(__file__).parent / "manifests"
RECIPE = Path(__file__).parents[3] / "recipes" / "cpu-demo.yaml"

CASES: Mapping[str, Sequence[str]] = {
    "job": (
        "kubernetes.storage_class=nfs",
        "kubernetes.prepare=python -m services.learner.sft_base.build --out /data/models/m",
    ),
    "jobset": (
        *("launch.learner_nnodes=3", "launch.learner_nproc_per_node=8", "launch.learner_rdzv_endpoint=control:29400"),
        *("launch.rollout_replicas=4", "rollout.tensor_parallel_size=2", "kubernetes.gpu=nvidia.com/gpu"),
        *("kubernetes.claim=shared", "kubernetes.images=registry.example/team/sluice-", "kubernetes.credentials=math"),
    ),
    "rayjob": ("launch.engine=ray", "launch.rollout_replicas=2", "kubernetes.gpu=nvidia.com/gpu"),
}
"""Overrides of the demo's recipe, by the kind of object that holds the control pod."""


def submission(*overrides: str, name: str = "demo-1", run_dir: str = "", template: Path | None = None) -> Submission:
    """The demo's recipe with overrides."""
    return Submission(
        name=name,
        recipe=RECIPE,
        overrides=overrides,
        config=load_config(RECIPE, overrides=overrides),
        run_dir=Path(run_dir or f"/data/runs/{name}"),
        template=template,
    )


def text(case: str) -> str:
    """All manifests of a case."""
    return "\n".join(rendered(submission(*CASES[case])).values())


if __name__ == "__main__":
    for case in CASES:
        (KEPT / f"{case}.yaml").write_text(text(case), encoding="utf-8")
