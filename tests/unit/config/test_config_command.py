"""`sluice config show | check | from-verl`."""

import importlib.util
import json
from pathlib import Path

import pytest

from sluice.cli.config import read_settings
from sluice.cli.main import main
from sluice.config.load import load_config
from sluice.errors import ConfigError

RECIPE = "model: {path: m}\ndata: {train_files: [a.jsonl]}\nreward: {overlong_buffer: {enable: true}}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_show_prints_a_recipe_that_resolves_to_itself(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "show", "-c", str(recipe), "--set", "rollout.n=4"]) == 0
    shown = tmp_path / "shown.yaml"
    shown.write_text(capsys.readouterr().out)
    assert load_config(shown) == load_config(recipe, overrides=["rollout.n=4"])


def test_check_prints_the_derived_numbers(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "-c", str(recipe), "--set", "algorithm.filter_groups.enable=false"]) == 0
    out = capsys.readouterr().out
    assert "sequences per step" in out
    assert "8,192" in out
    assert "not exact DAPO" in out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.sampler=difficulty", "data.train_files=[sums.jsonl]"], "data.sampler: difficulty"),
        (["algorithm.filter_groups.enable=false"], "algorithm.filter_groups.enable: false"),
        (["algorithm.clip_ratio_low=0.9"], "algorithm.clip_ratio_low: 0.9"),
        (["algorithm.clip_ratio_high=5.0"], "algorithm.clip_ratio_high: 5.0"),
        (["algorithm.clip_ratio_high=0.2"], "algorithm.clip_ratio_high: 0.2"),
        (["algorithm.clip_ratio_c=1.5"], "algorithm.clip_ratio_c: 1.5"),
        (["rollout.temperature=0.1"], "rollout.temperature: 0.1"),
        (["coordinator.max_staleness=50"], "coordinator.max_staleness: 50"),
        (["coordinator.max_staleness=2"], "coordinator.max_staleness: 2"),
        (["reward.overlong_buffer.enable=false"], "reward.overlong_buffer.enable: false"),
        (["reward.overlong_buffer.penalty_factor=0"], "reward.overlong_buffer.penalty_factor: 0.0"),
        (
            ["rollout.temperature=0.7", "algorithm.clip_ratio_high=0.3"],
            "rollout.temperature: 0.7, algorithm.clip_ratio_high: 0.3",
        ),
        (["algorithm.filter_groups.metric=seq_reward"], "algorithm.filter_groups.metric: seq_reward"),
        (["algorithm.loss_mode=gspo"], "algorithm.loss_mode: gspo"),
        (["algorithm.ess_scaling=true"], "algorithm.ess_scaling: true"),
        (
            ["algorithm.rollout_correction.opsm_delta=0.1"],
            "algorithm.rollout_correction.opsm_delta: 0.1",
        ),
        (["algorithm.loss_agg_mode=seq-mean-token-mean"], "algorithm.loss_agg_mode: seq-mean-token-mean"),
        (["algorithm.norm_adv_by_std_in_grpo=false"], "algorithm.norm_adv_by_std_in_grpo: false"),
        (["algorithm.rollout_correction.rollout_rs=token"], "algorithm.rollout_correction.rollout_rs: token"),
        (
            ["algorithm.rollout_correction.rollout_is=token", "algorithm.proximal=recompute"],
            "algorithm.rollout_correction.rollout_is: token",
        ),
    ],
)
def test_check_names_every_setting_that_departs_from_exact_dapo(
    recipe: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    assert not load_config(recipe, overrides=overrides).exact_dapo
    assert main(["config", "check", "-c", str(recipe), *(f"--set={override}" for override in overrides)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"not exact DAPO: {said}"


def test_what_is_in_the_paper_is_exact_dapo(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["overlong_filtering=true", "clip_ratio_high=0.28", "clip_ratio_c=null"]
    flags = [f"--set=algorithm.{flag}" for flag in flags] + ["--set=coordinator.max_staleness=0"]
    assert main(["config", "check", "-c", str(recipe), *flags]) == 0
    assert "not exact DAPO" not in capsys.readouterr().out


def test_check_prints_all_problems_and_exits_with_2(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "-c", str(recipe), "--set", "learner.lr=-1", "--set", "rollout.m=1"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "override: learner.lr: must be > 0, got -1" in captured.err
    assert "override: rollout.m: is not a known key; did you mean rollout.n?" in captured.err


def test_from_verl_writes_a_recipe_and_tells_what_it_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "recipe.yaml"
    settings = ["data.train_files=a.parquet", "actor_rollout_ref.model.path=m", "actor_rollout_ref.rollout.n=8"]
    assert main(["config", "from-verl", *settings, "trainer.nnodes=2", "-o", str(out)]) == 0
    assert load_config(out).rollout.n == 8
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "trainer.nnodes" in captured.err


def test_from_verl_reads_the_lines_of_a_shell_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "settings.txt"
    script.write_text(
        '# the settings\ndata.train_files="a.parquet" \\\n+actor_rollout_ref.rollout.n=8 trainer.nnodes=2 \\\n'
    )
    assert main(["config", "from-verl", str(script)]) == 0
    assert "n: 8" in capsys.readouterr().out


def test_from_verl_names_a_place_where_it_cannot_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "from-verl", "-o", str(tmp_path / "none" / "r.yaml"), "data.train_batch_size=4"]) == 2
    assert f"sluice: --out: {tmp_path}/none/r.yaml cannot be written: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"data_source": "s", "prompt": "caf\xe9"}\n', "must be UTF-8, got the byte 0xe9; convert the file"),
        (b"\xff\xfe", "must be UTF-8, got the byte 0xff"),
        (b"[" * 100_000, "line 1: must be a JSON object with data_source and prompt"),
        (b'{"question": 1}\n', "line 1: must be a JSON object with data_source and prompt"),
    ],
)
def test_submit_names_a_file_that_it_cannot_read(
    content: bytes, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    assert main(["prompts", str(tmp_path / "a.jsonl")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_from_verl_refuses_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "from-verl", "actor_rollout_ref.actor.kl_loss_coef=0.1"]) == 2
    assert "kl_loss_coef: cannot be honoured, got 0.1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("data: {seed: 1}", {"data": {"seed": 1}}),
        ("data.seed: 1", {"data.seed": 1}),
        ("- data.seed=1\n- +data.shuffle=true", ["data.seed=1", "+data.shuffle=true"]),
        ("data.seed=1\n\n  data.shuffle=true \\", ["data.seed=1", "data.shuffle=true"]),
    ],
)
def test_a_file_of_settings_has_any_of_verls_forms(text: str, settings: object) -> None:
    assert read_settings(text, where="f") == settings


def test_other_files_are_refused() -> None:
    with pytest.raises(ConfigError, match="f: must be a YAML mapping"):
        read_settings("just words", where="f")


def test_a_logger_that_is_not_installed_is_refused_with_what_to_install(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    wish = ["--set", "launch.reward_replicas=0", "--set", "run.loggers=[wandb, mlflow, wandb]"]
    assert main(["config", "check", "-c", str(recipe), *wish]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "run.loggers: wandb is not installed" in said[0]
    assert "pip install 'sluice-rl[mlflow]'" in said[1]


def test_check_says_when_a_micro_batch_is_shorter_than_the_longest_sequence(
    recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["data.max_prompt_length=100", "data.max_response_length=900", "reward.overlong_buffer.len=10"]
    for tokens, said in ((1000, False), (999, True)):
        overrides = [*sizes, f"learner.max_tokens_per_micro_batch={tokens}"]
        assert main(["config", "check", "-c", str(recipe), *(f"--set={override}" for override in overrides)]) == 0
        out = capsys.readouterr().out
        assert ("note: learner.max_tokens_per_micro_batch: 999 is below the longest sequence" in out) == said
    together = [*overrides, "launch.learner_nproc_per_node=2", "learner.context_parallel_size=2"]
    assert main(["config", "check", "-c", str(recipe), *(f"--set={override}" for override in together)]) == 0
    assert "below the longest sequence" not in capsys.readouterr().out


QWEN = {
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}


@pytest.fixture
def sized(recipe: Path, tmp_path: Path) -> list[str]:
    """The command for a recipe whose model has a config.json and no weights."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(QWEN))
    return ["config", "check", "-c", str(recipe), "--set", f"model.path={tmp_path / 'model'}"]


def test_check_counts_memory_disk_and_network_from_config_json(
    sized: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*sized, "--set", "launch.learner_nproc_per_node=8"]) == 0
    out = capsys.readouterr().out
    assert "qwen2, 7,615,616,512 parameters" in out
    for said in ("learner, each of 8 ranks", "rollout, its GPU", "host memory", "disk", "network", "most: activations"):
        assert said in out
    assert "KV cache: 57,344 bytes a token on each GPU" in out  # 2 x 28 layers x 4 heads x 128 x 2 bytes
    assert max(map(len, out.splitlines())) < 200


def test_check_refuses_what_cannot_fit_the_gpus_in_one_line(
    sized: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--gpu-memory", "80GB", "--gpus", "16", "--set", "launch.learner_nproc_per_node=8"]
    assert main([*sized, *flags]) == 2
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert line.startswith("sluice: --gpu-memory: a rank of the learner needs ")
    assert line.endswith("lower it: learner.gradient_checkpointing, learner.max_tokens_per_micro_batch")
    assert "together" in captured.out
    assert main([*sized, *flags, "--set", "learner.gradient_checkpointing=true"]) == 0
    assert "of 80 GB" in capsys.readouterr().out


def test_check_says_that_a_model_is_not_counted(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "check", "-c", str(recipe)]) == 0
    assert capsys.readouterr().out.startswith("memory is not counted: model.path: m has no config.json\n")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--gpu-memory", "big"], "sluice: --gpu-memory: must be a size such as 80GB or 80GiB, got 'big'"),
        (["--gpus", "8"], "sluice: --gpus: must be from 1 to 100000 and come with --gpu-memory, got 8"),
        (
            ["--gpus", "0", "--gpu-memory", "1GB"],
            "sluice: --gpus: must be from 1 to 100000 and come with --gpu-memory, got 0",
        ),
    ],
)
def test_check_refuses_flags_that_make_no_sense(
    sized: list[str], flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*sized, *flags]) == 2
    assert capsys.readouterr().err.strip() == said


@pytest.mark.parametrize("command", [["config", "check"], ["up", "--dry-run"]])
def test_heads_and_layers_that_context_parallelism_cannot_cut_are_refused_before_anything_starts(
    command: list[str], sized: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(ranks: int, size: int) -> str:
        sets = [f"launch.learner_nproc_per_node={ranks}", f"learner.context_parallel_size={size}"]
        assert main([*command, *sized[2:], *(f"--set={each}" for each in sets)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line.partition("learner.context_parallel_size: ")[2]

    model = tmp_path / "model"
    heads = f"must divide the 28 attention heads of {model}, got 8; with 8 ranks of the learner: 1, 2, 4"
    assert refusal(8, 8) == heads
    ranks = (
        "must divide the learner's ranks (launch.learner_nproc_per_node x launch.learner_nnodes = 6), got 4; it may be "
    )
    assert refusal(6, 4) == f"{ranks}1, 2, 3, 6"
    (model / "config.json").write_text(json.dumps(QWEN | {"layer_types": ["conv", "full_attention"] * 14}))
    assert refusal(8, 4).startswith(f"must be 1 for {model}, got 4; its layers of kind conv mix tokens otherwise")


def test_check_takes_heads_that_divide_and_says_when_groups_span_machines(
    sized: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*sized, "--set=launch.learner_nproc_per_node=4", "--set=learner.context_parallel_size=4"]) == 0
    assert "note: learner.context_parallel_size" not in capsys.readouterr().out
    two = ["launch.learner_nproc_per_node=2", "launch.learner_nnodes=2", "launch.learner_rdzv_endpoint=10.0.0.1:1"]
    two += ["network.advertise=10.0.0.1", "learner.context_parallel_size=4"]
    assert main([*sized, *(f"--set={each}" for each in two)]) == 0
    assert "note: learner.context_parallel_size: 4 does not divide the 2 ranks of a machine" in capsys.readouterr().out
