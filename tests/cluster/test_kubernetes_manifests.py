"""What a cluster of Kubernetes gets, held against its schemas: kubernetes-validate, JobSet's models, helm.

`scripts/kubernetes_tools.sh` makes the environment of these tools.
"""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from scripts.helm_chart import CHART
from sluice.config.load import load_config
from tests.unit.submit.kubernetes_cases import CASES, RECIPE, text

TOOLS = Path(__file__).parents[2] / ".venv-kubernetes" / "bin"
OF_CONTROLLERS = {"JobSet", "RayJob"}
"""Kinds that Kubernetes itself does not know."""

pytestmark = [pytest.mark.cluster, pytest.mark.needs("kubernetes-tools")]
by_case = pytest.mark.parametrize("case", CASES)


def tool(name: str, *arguments: object, said: str = "") -> str:
    command = [str(TOOLS / name), *map(str, arguments)]
    done = subprocess.run(command, input=said, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    return done.stdout


def objects(manifests: str) -> dict[tuple[str, str], Any]:
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(manifests) if one}


def chart(case: str) -> str:
    """What Helm makes of the recipe as its user gives it, with the case's overrides as --set."""
    recipe = "recipe:\n" + "".join(f"  {line}\n" for line in RECIPE.read_text().splitlines())
    sets = [part for override in CASES[case] for part in ("--set-json", _as_json(override))]
    return tool("helm", "template", "demo-1", CHART, "-f", "-", *sets, said=recipe)


def _as_json(override: str) -> str:
    key, _, value = override.partition("=")
    return f"recipe.{key}={json.dumps(yaml.safe_load(value))}"


@by_case
def test_kubernetes_knows_every_field(case: str, tmp_path: Path) -> None:
    for number, one in enumerate(objects(text(case)).values()):
        if one["kind"] not in OF_CONTROLLERS:
            (tmp_path / f"{number}.yaml").write_text(yaml.safe_dump(one))
    tool("kubernetes-validate", "--strict", *tmp_path.iterdir())


def test_jobset_knows_every_field() -> None:
    (jobset,) = [one for kind, one in objects(text("jobset")).items() if kind[0] == "JobSet"]
    program = (
        "import json, sys; from kubeflow_trainer_api.models import JobsetV1alpha2JobSet as JobSet; "
        "print(json.dumps(JobSet.from_dict(json.load(sys.stdin)).to_dict()))"
    )
    assert unknown(jobset, json.loads(tool("python", "-c", program, said=json.dumps(jobset)))) == []


def unknown(given: Any, taken: Any, where: str = "") -> list[str]:
    """What of `given` the models have dropped or changed; what they have added are defaults."""
    if isinstance(given, Mapping) and isinstance(taken, Mapping):
        return [line for key, inner in given.items() for line in unknown(inner, taken.get(key), f"{where}.{key}")]
    if isinstance(given, list) and isinstance(taken, list) and len(given) == len(taken):
        return [
            line
            for pair in enumerate(zip(given, taken, strict=True))
            for line in unknown(*pair[1], f"{where}[{pair[0]}]")
        ]
    return [] if given == taken else [f"{where}: {given!r} became {taken!r}"]


@by_case
def test_the_chart_gives_what_submit_gives(case: str, tmp_path: Path) -> None:
    ours, helms = objects(text(case)), objects(chart(case))
    for made in (ours, helms):
        path = tmp_path / "recipe.yaml"
        path.write_text(made[("ConfigMap", "demo-1")]["data"].pop("recipe.yaml"))
        meeting = ["launch.learner_rdzv_endpoint=control:29400"]  # the control pod's environment names it
        made[("recipe", "")] = load_config(path, overrides=meeting).model_dump()
    assert helms == ours


def test_the_chart_has_no_faults(tmp_path: Path) -> None:
    values = tmp_path / "values.yaml"
    values.write_text("recipe: {model: {path: m}, data: {train_files: ['mixadd3:train']}}\n")
    assert "1 chart(s) linted, 0 chart(s) failed" in tool("helm", "lint", "--strict", CHART, "-f", values)
    with pytest.raises(AssertionError, match=r"recipe\.model\.path: must be given"):
        tool("helm", "template", "demo-1", CHART)
