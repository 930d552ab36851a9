"""Room in /dev/shm for an engine's processes: who needs how much, who is refused, and what containers get."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from sluice.cli.main import main
from sluice.config.load import load_config
from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.shared_memory import check_here, check_room, needed_bytes
from tests.unit.deploy.test_compose_files import BASE, GPU

MANIFESTS = Path(__file__).parent / "submit" / "manifests"
FREE_MIB = os.statvfs("/dev/shm").f_bfree * os.statvfs("/dev/shm").f_frsize >> 20
TOO_MANY = FREE_MIB // 304 + 1
"""Processes for whose messages this machine has no room."""

RECIPE = ["model.path=m", "data.train_files=[a.jsonl]"]


def recipe(workers: int, *overrides: str) -> Config:
    return load_config(None, overrides=[*RECIPE, f"rollout.tensor_parallel_size={workers}", *overrides])


def test_only_several_processes_of_vllm_need_any() -> None:
    assert needed_bytes(recipe(1)) == 0
    assert needed_bytes(recipe(2)) == (160 + 2 * 304) << 20
    assert needed_bytes(recipe(2), engine="transformers") == 0


def test_too_little_is_refused_with_need_have_and_fix_and_nothing_else_is() -> None:
    config = recipe(TOO_MANY)
    with pytest.raises(ConfigError) as refused:
        check_room(config)
    (line,) = str(refused.value).splitlines()
    for part in (f"{TOO_MANY} processes", f"{160 + TOO_MANY * 304} MiB free", "--shm-size=", "shm_size"):
        assert part in line
    check_room(config, engine="transformers")
    check_room(config, folder=Path("/absent"))
    check_here(recipe(TOO_MANY, "launch.rollout_replicas=0"))
    check_here(recipe(TOO_MANY, "launch.engine=ray"))


def test_a_run_is_refused_before_it_starts_and_a_check_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("model: {path: m}\ndata: {train_files: [a.jsonl]}\n")
    sets = ["--set", f"rollout.tensor_parallel_size={TOO_MANY}"]
    for verb in (["up", "--plain", "--run-dir", str(tmp_path / "run")], ["up", "--dry-run"]):
        assert main([*verb, "-c", str(path), *sets]) == 2
        assert "/dev/shm, which must have" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(["config", "check", "-c", str(path), *sets]) == 0
    assert "note: `sluice up` is refused on this machine: rollout.tensor_parallel_size" in capsys.readouterr().out


def test_containers_of_compose_have_room_for_two_processes_and_those_for_gpus_for_eight() -> None:
    for services, workers in ((BASE["services"], 2), (GPU["services"], 8)):
        assert int(services["rollout"]["shm_size"].removesuffix("gb")) << 30 >= needed_bytes(recipe(workers))


@pytest.mark.parametrize("name", ["job", "jobset", "rayjob"])
def test_pods_of_kubernetes_have_memory_there_without_a_limit_of_its_own(name: str) -> None:
    pods = [
        pod for document in yaml.safe_load_all((MANIFESTS / f"{name}.yaml").read_text()) for pod in pods_in(document)
    ]
    computing = [pod for pod in pods if {each["name"] for each in pod.get("volumes", ())} >= {"shm"}]
    assert computing
    for pod in computing:
        assert {"name": "shm", "emptyDir": {"medium": "Memory"}} in pod["volumes"]
        assert {"name": "shm", "mountPath": "/dev/shm"} in pod["containers"][0]["volumeMounts"]


def pods_in(tree: Any) -> Iterator[dict[str, Any]]:
    """Every mapping with containers."""
    if isinstance(tree, dict):
        if "containers" in tree:
            yield tree
        for each in tree.values():
            yield from pods_in(each)
    elif isinstance(tree, list):
        for each in tree:
            yield from pods_in(each)
