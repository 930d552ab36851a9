"""Models that cannot simply be packed train to the same gradients as the plain reference, on one rank and on two."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.learner.distributed.ranks import Ranks
from services.learner.policy.reduced_model import random_model
from tests.decoder_families import tiny_config
from tests.integration.learner_rank import on_ranks, run_job
from tests.integration.test_learner_ranks import Figures, _job, _reference

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

FAMILIES = ("lfm2", "gpt_oss", "gemma2", "seed_oss")
"""A convolutional state; attention sinks; capped scores and logits; dropout in the configuration."""


def _write(folder: Path, family: str) -> Path:
    """A tiny model of the family, calm enough that gradients can be compared in float32."""
    model_config = tiny_config(family)
    if family == "seed_oss":
        model_config.residual_dropout = model_config.attention_dropout = 0.1
    causal_lm = random_model(model_config, seed=0)
    with torch.no_grad():
        for parameter in causal_lm.parameters():
            parameter.mul_(0.3 if parameter.ndim >= 2 else 1.0)
    causal_lm.save_pretrained(folder)
    return folder


def _checkpointed_job() -> dict[str, Any]:
    job = _job(max_tokens=40)
    job["config"]["learner"]["gradient_checkpointing"] = True
    return job


def _assert_alike(ours: Figures, theirs: Figures) -> None:
    assert ours["metric/loss/policy"] == pytest.approx(theirs["loss"], abs=2e-6)
    assert ours["metric/loss/grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    for name in (name for name in theirs if name.startswith("grad/")):
        assert np.linalg.norm(ours[name] - theirs[name]) <= 1e-3 * np.linalg.norm(theirs[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_one_rank_trains_what_the_reference_trains(family: str, tmp_path: Path, alone: Ranks) -> None:
    folder = _write(tmp_path / "model", family)
    wanted = _reference(folder)
    for job in (_job(max_tokens=40), _checkpointed_job()):
        _assert_alike(run_job(folder, job, alone), wanted)


def test_two_ranks_train_one_sequence_a_row_as_the_reference_trains(tmp_path: Path) -> None:
    folder = _write(tmp_path / "model", "lfm2")
    (found,) = on_ranks(folder, tmp_path / "out", [_checkpointed_job()], ranks=2)
    _assert_alike(found, _reference(folder))


def test_a_model_that_differs_is_refused_on_two_ranks_and_nobody_waits(tmp_path: Path) -> None:
    folder = _write(tmp_path / "model", "deepseek_v32")
    with pytest.raises(
        AssertionError, match=r"ConfigError: model\.path: .* \(DeepseekV32ForCausalLM\) is not computed as"
    ):
        on_ranks(folder, tmp_path / "out", [_job()], ranks=2)
