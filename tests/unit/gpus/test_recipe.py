"""What a recipe becomes on the GPUs that there are: rollouts, memory of a shared GPU, what is printed, what services get."""

import json
from pathlib import Path

import pytest

from sluice.cli.main import main
from sluice.config.load import load_config
from sluice.config.schema import Config
from sluice.errors import ConfigError, LaunchError
from sluice.gpus.nvml import find_machine
from sluice.gpus.recipe import SharedOut, on_cluster, on_this_machine
from sluice.launch.commands import Command, GpuShare, service_command
from sluice.launch.engines.local import LocalEngine
from sluice.launch.gpus import Gpus, shared_out
from tests.unit.gpus.fake_nvml import FakeGpu, FakeNvml, machine_of

LLAMA = {"model_type": "llama", "vocab_size": 32_000, "hidden_size": 2048, "intermediate_size": 8192}
LLAMA |= {"num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    path = tmp_path / "recipe.yaml"
    path.write_text(f"model: {{path: {tmp_path}}}\ndata: {{train_files: [a.jsonl]}}\n")
    return path


def config_of(recipe: Path, *overrides: str) -> Config:
    return load_config(recipe, overrides=overrides)


def here(config: Config, **environ: str) -> SharedOut:
    return on_this_machine(config, find_machine(), environ=environ)


def command(config: Config, gpus: Gpus, name: str) -> Command:
    role, _, index = name.partition("-")
    share = gpus.share(role, name)
    return service_command(config, role, index=int(index or 0), coordinator="h:1", run_id="r", gpus=share)


def visible(command: Command) -> str | None:
    return command.environ.get("CUDA_VISIBLE_DEVICES")


async def test_on_eight_gpus_every_service_sees_its_own_and_scaling_takes_what_is_free(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_of(8, islands=[(0, 1, 2, 3), (4, 5, 6, 7)]).install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    sets = ["launch.learner_nproc_per_node=3", "rollout.tensor_parallel_size=2", "launch.rollout_replicas=1"]
    out = await shared_out(config_of(recipe, *sets), LocalEngine(), learner=True, rollouts=True)
    gpus = Gpus(out)
    made = {name: command(out.config, gpus, name) for name in ("learner", "rollout-0", "reward-0")}
    assert {name: visible(each) for name, each in made.items()} == {
        "learner": "0,1,2",
        "rollout-0": "4,5",
        "reward-0": "",
    }
    assert [each.needs.gpus for each in made.values()] == [3, 2, 0]
    assert made["learner"].environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert visible(command(out.config, gpus, "rollout-1")) == "6,7"
    assert visible(command(out.config, gpus, "rollout-1")) == "6,7"  # started again
    with pytest.raises(
        LaunchError, match="rollout-2 is not started: a rollout needs 2 of the 8 GPUs, and free are: 3;"
    ):
        gpus.share("rollout", "rollout-2")
    gpus.give_back("rollout-0")
    assert visible(command(out.config, gpus, "rollout-2")) == "4,5"
    assert out.lines == (
        "GPUs: 8 x Fake H100 (80 GB)",
        "  learner    0,1,2  NVLink",
        "  rollout-0  4,5    NVLink",
        "  rewards    none",
        "  free       3,6,7",
    )
    assert not gpus.sharing


async def test_without_gpus_commands_and_recipe_are_as_they_were(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_of(0).install(monkeypatch)
    config = config_of(recipe, "launch.learner_nproc_per_node=4", "launch.rollout_replicas=3")
    out = await shared_out(config, LocalEngine(), learner=True, rollouts=True)
    assert (out.config, out.lines, out.plan) == (config, (), None)
    for name in ("learner", "rollout-7", "reward-0"):
        assert Gpus(out).share(name.partition("-")[0], name) == GpuShare()
    assert here(config_of(recipe, "launch.rollout_replicas=auto")).config.launch.rollout_replicas == 1


def test_services_that_may_not_use_the_gpus_are_told_so(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine_of(2).install(monkeypatch)
    config = config_of(recipe, "launch.learner_nproc_per_node=4", "launch.rollout_replicas=auto")
    for out in (here(config_of(recipe, "launch.gpus=none")), here(config, CUDA_VISIBLE_DEVICES="")):
        assert visible(command(out.config, Gpus(out), "learner")) == ""
        assert command(out.config, Gpus(out), "learner").needs.gpus == 0
    with pytest.raises(ConfigError, match=r"= 5 GPUs, this machine has 1 \(CUDA_VISIBLE_DEVICES=1\): lower"):
        here(config, CUDA_VISIBLE_DEVICES="1")


def test_on_one_gpu_the_rollout_gets_a_cache_that_leaves_the_learner_its_share(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_of(1).install(monkeypatch)
    out = here(config_of(recipe, "launch.shared_gpu_fraction=0.5"))
    gpus = Gpus(out)
    assert visible(command(out.config, gpus, "learner")) == visible(command(out.config, gpus, "rollout-0")) == "0"
    assert gpus.sharing == {"rollout-0"}
    # 2 bytes x 1,104,283,648 parameters; 2 x 4 x 256 x 32,000; 16,384 x 2 x (4 x 2048 + 3 x 8192)
    weights, logits, step = 2_208_567_296, 65_536_000, 1_073_741_824
    cache = out.config.rollout.kv_cache_bytes
    assert cache is not None
    assert cache + logits + step == pytest.approx(40e9 - 3e9 - weights, rel=0.01)
    assert out.lines[-3].startswith("shared: a rollout has 50% of a GPU (launch.shared_gpu_fraction), 40 GB: ")
    assert out.lines[-2] == "shared: a rank of the learner needs 77.8 GB, and 40 GB are left"
    assert out.lines[-1].startswith("note: the learner may run out of memory")
    assert here(config_of(recipe, "rollout.kv_cache_bytes=7")).config.rollout.kv_cache_bytes == 7
    (recipe.parent / "config.json").write_text("{}")
    uncounted = here(config_of(recipe))
    assert (uncounted.config.rollout.gpu_memory_utilization, uncounted.config.rollout.kv_cache_bytes) == (0.4, None)
    (recipe.parent / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ConfigError, match=r"^launch.shared_gpu_fraction: 0.01 of 80 GB must hold .* raise it, or give"):
        here(config_of(recipe, "launch.shared_gpu_fraction=0.01"))


async def test_an_engine_that_places_gets_numbers(recipe: Path) -> None:
    class Cluster(LocalEngine):
        async def gpus(self) -> int:  # type: ignore[override]
            return 16

    sets = ["launch.engine=ray", "launch.learner_nproc_per_node=4", "rollout.tensor_parallel_size=2"]
    config = config_of(recipe, *sets, "launch.rollout_replicas=auto")
    out = await shared_out(config, Cluster(), learner=True, rollouts=True)
    assert out.config.launch.rollout_replicas == 6
    made = {name: command(out.config, Gpus(out), name) for name in ("learner", "rollout-9", "reward-0")}
    assert [each.needs.gpus for each in made.values()] == [4, 2, 0]
    assert [visible(each) for each in made.values()] == [None, None, ""]
    assert on_cluster(config, 6).lines[-1:] == ("  rewards: none",)
    assert (
        on_cluster(config, 5).lines[-1].startswith("note: 4 for the learner + 1 x 2 for rollouts = 6: the rest waits")
    )
    for without in (on_cluster(config, 0), on_cluster(config_of(recipe, *sets, "launch.gpus=none"), 8)):
        assert command(without.config, Gpus(without), "learner").needs.gpus == 0
        said = ["GPUs of the cluster: none now"] if without.config.launch.gpus == "auto" else []
        assert [line.split(",")[0] for line in without.lines] == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("all", "must be `auto` or `none` or list of whole number >= 0 or text, got 'all'"),
        ("[]", "must name each GPU once, and at least one, got []; without any write none"),
        ("[1, 1]", "must name each GPU once, and at least one, got ['1', '1']; without any write none"),
        (
            "[cuda:0]",
            "must hold numbers as `nvidia-smi -L` prints them, UUIDs (GPU-...) or names of slices (MIG-...), got",
        ),
        ("[true]", "must be `auto` or `none` or list of"),
    ],
)
def test_lists_of_gpus_that_name_none_are_refused(recipe: Path, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(recipe, f"launch.gpus={value}")
    assert f"launch.gpus: {said}" in str(caught.value)
    with pytest.raises(ConfigError, match=r"must be auto or none with launch.engine: ray, which chooses"):
        config_of(recipe, "launch.engine=ray", "launch.gpus=[0]")


def test_check_and_dry_run_print_the_plan_and_the_sizes_agree(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = ["config", "check", "-c", str(recipe), "--set", "launch.rollout_replicas=auto"]

    def checked(*flags: str) -> str:
        assert main([*check, *flags]) == 0
        return capsys.readouterr().out

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    machine_of(0).install(monkeypatch)
    assert "GPUs: none found; learner and rollouts compute on the CPU" in checked()
    FakeNvml(gpus=[FakeGpu(uuid="GPU-1", slices=["MIG-aa", "MIG-bb"])]).install(monkeypatch)
    assert "  learner    MIG-aa\n  rollout-0  MIG-bb\n  rewards    none\n" in checked()
    machine_of(4).install(monkeypatch)
    said = checked()
    assert "  learner    0  \n" not in said
    assert "  rollout-2  3\n" in said
    assert "to 3 rollouts" in said
    many = ["--gpu-memory", "200GB", "--gpus", "40"]
    assert "GPUs: 1 for the learner + 39 x 1 for rollouts = 40 of 40\n" in checked(*many)
    one = checked("--gpu-memory", "200GB", "--gpus", "1")
    assert "shared: a rollout has 40% of a GPU (launch.shared_gpu_fraction), 80 GB" in one
    two = ["--set", "launch.rollout_replicas=9"]
    assert "note: `sluice up` is refused on this machine: launch.gpus: 1 for the learner + 9 x 1" in checked(*two)
    assert main([*check, *two, "--gpu-memory", "200GB", "--gpus", "8"]) == 2
    assert (
        "launch.gpus: 1 for the learner + 9 x 1 for rollouts = 10 GPUs, this machine has 8" in capsys.readouterr().err
    )
    assert main(["up", "-c", str(recipe), "--rollout-replicas", "9", "--dry-run"]) == 2
    assert "= 10 GPUs, this machine has 4" in capsys.readouterr().err
