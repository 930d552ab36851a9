"""Every recipe loads with the schema, and the reproduction recipes say what verl's DAPO script says."""

from pathlib import Path

import pytest

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


def test_the_reproduction_has_the_values_of_the_script() -> None:
    config = load_config(FULL)
    assert config.exact_dapo
    assert (config.data.train_batch_size, config.gen_batch_size, config.rollout.n) == (512, 1536, 16)
    assert config.data.train_batch_size // config.mini_batch_size == 16
    assert config.data.max_response_length - config.reward.overlong_buffer.len == 16384
    algorithm = config.algorithm
    assert (algorithm.clip_ratio_low, algorithm.clip_ratio_high, algorithm.clip_ratio_c) == (0.2, 0.28, 10.0)
    assert (config.learner.lr, config.learner.warmup_steps, config.learner.weight_decay) == (1e-6, 10, 0.1)


def test_the_variants_differ_in_what_their_names_say() -> None:
    full, no_filter, early = (load_config(path) for path in (FULL, NO_FILTER, EARLY))
    assert full.algorithm.filter_groups.enable
    assert not no_filter.algorithm.filter_groups.enable
    assert no_filter.algorithm.loss_agg_mode == full.algorithm.loss_agg_mode == "token-mean"
    assert not early.algorithm.filter_groups.enable
    assert early.algorithm.loss_agg_mode == "seq-mean-token-mean"
    assert full.learner == no_filter.learner == early.learner
    assert not no_filter.exact_dapo
    assert not early.exact_dapo
