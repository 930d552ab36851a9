"""Every recipe loads with the schema, and the reproduction recipes say what verl's DAPO scripts say."""

from pathlib import Path
from typing import Any

import pytest

from sluice.config.evaluation_sets import evaluation_sets
from sluice.config.load import load_config
from tests.unit.docs.pages import ROOT

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FULL, NO_FILTER, EARLY = (
    ROOT / "recipes" / f"dapo-qwen2.5-32b{variant}.yaml" for variant in ("", "-no-dynamic-sampling", "-early")
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_is_named_after_its_file(path: Path) -> None:
    config = load_config(path)
    assert config.run.name in (path.stem, path.stem.removeprefix("cpu-"))


REPRODUCTIONS = (FULL, NO_FILTER, EARLY)
SMALL = ROOT / "recipes" / "dapo-qwen2.5-math-7b.yaml"

SCRIPT = {
    "data": {"train_batch_size": 512, "max_prompt_length": 2048, "max_response_length": 20480, "template": "model"},
    "rollout": {"n": 16, "temperature": 1.0, "engine": "vllm", "tensor_parallel_size": 4, "enforce_eager": True},
    "algorithm": {
        "loss_mode": "vanilla",
        "norm_adv_by_std_in_grpo": True,
        "overlong_filtering": False,
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.28,
        "clip_ratio_c": 10.0,
    },
    "learner": {
        "mini_batch_size": 32,
        "max_tokens_per_micro_batch": 22528,
        "context_parallel_size": 8,
        "gradient_checkpointing": True,
        "lr": 1e-6,
        "warmup_steps": 10,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.1,
        "betas": (0.9, 0.999),
        "grad_clip": 1.0,
        "checkpoint_every_steps": 5,
        "resume": "auto",
    },
    "coordinator": {"max_staleness": 0},
}
"""What all three scripts set, or leave at verl's default."""


def said(path: Path, section: str) -> dict[str, Any]:
    return getattr(load_config(path), section).model_dump()


@pytest.mark.parametrize("section", sorted(SCRIPT))
@pytest.mark.parametrize("path", REPRODUCTIONS, ids=lambda path: path.stem)
def test_a_reproduction_has_the_values_of_its_script(path: Path, section: str) -> None:
    assert {key: said(path, section)[key] for key in SCRIPT[section]} == SCRIPT[section]


@pytest.mark.parametrize("path", [*REPRODUCTIONS, SMALL], ids=lambda path: path.stem)
def test_overlong_answers_are_punished_in_the_last_4096_tokens(path: Path) -> None:
    config = load_config(path)
    assert config.reward.overlong_buffer.model_dump() == {"enable": True, "len": 4096, "penalty_factor": 1.0}
    assert config.data.train_batch_size // config.mini_batch_size == 16


def test_dynamic_sampling_draws_three_batches_and_gives_up_after_ten() -> None:
    for config in (load_config(FULL), load_config(SMALL)):
        assert config.exact_dapo
        assert config.gen_batch_size == 3 * config.data.train_batch_size
        groups = config.algorithm.filter_groups
        assert (groups.metric, groups.max_num_gen_batches) == ("acc", 10)


def test_the_7b_recipe_has_the_values_of_its_script_where_it_differs_from_the_32b_one() -> None:
    small, full = load_config(SMALL), load_config(FULL)
    assert small.algorithm == full.algorithm
    assert (small.run.total_steps, small.data.max_response_length) == (200, 8192)
    assert small.data.model_copy(update={"max_response_length": 20480}) == full.data
    changed = {"max_tokens_per_micro_batch": 20480, "checkpoint_every_steps": 10, "step_timeout_s": 10800.0}
    changed["context_parallel_size"] = 4
    assert small.learner == full.learner.model_copy(update=changed)
    assert small.rollout == full.rollout.model_copy(update={"tensor_parallel_size": 1})
    assert small.reward == full.reward
    assert small.eval.model_copy(update={"sets": full.eval.sets}) == full.eval


def test_every_reproduction_has_a_row_in_the_table() -> None:
    page = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    accuracies = {FULL: "52 %", NO_FILTER: "50 %", EARLY: "44 %", SMALL: "not run"}
    for path, accuracy in accuracies.items():
        rows = [line for line in page.splitlines() if line.startswith("|") and f"`recipes/{path.name}`" in line]
        assert any(accuracy in row for row in rows), path.name
        assert any("not run" in row for row in rows), path.name


def test_the_variants_differ_in_what_their_names_say() -> None:
    full, no_filter, early = (load_config(path) for path in (FULL, NO_FILTER, EARLY))
    assert full.algorithm.filter_groups.enable
    assert not no_filter.algorithm.filter_groups.enable
    assert no_filter.algorithm.loss_agg_mode == full.algorithm.loss_agg_mode == "token-mean"
    assert not early.algorithm.filter_groups.enable
    assert early.algorithm.loss_agg_mode == "seq-mean-token-mean"
    assert full.learner == no_filter.learner == early.learner
    assert [c.gen_batch_size for c in (full, no_filter, early)] == [1536, 512, 512]
    assert [c.rollout.gpu_memory_utilization for c in (full, no_filter, early)] == [0.8, 0.7, 0.8]
    assert not no_filter.exact_dapo
    assert not early.exact_dapo


@pytest.mark.parametrize(("path", "every"), [*((path, 5) for path in REPRODUCTIONS), (SMALL, 10)])
def test_aime_is_evaluated_as_published_32_samples_at_top_p_07(path: Path, every: int) -> None:
    [aime] = evaluation_sets(load_config(path))
    assert (aime.name, aime.prompts, aime.n, aime.temperature, aime.top_p) == ("aime_2024", 30, 32, 1.0, 0.7)
    assert (aime.small_prompts, aime.small_n, aime.every_steps) == (30, 32, every)
