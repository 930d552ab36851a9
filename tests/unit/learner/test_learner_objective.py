"""What the objective makes of whole sequences."""

import numpy as np
import pytest
import torch

from services.learner.batches.batch import TrainSequence
from services.learner.policy.packing import Packed, pack
from services.learner.training.objective import LossStats, Objective
from sluice.config.schema import AlgorithmConfig

BROKEN = [-30.0, 15.0, 14.5]
"""Log-ratios of one sequence: the sum is -0.5, though one token is beyond the clamp of a token."""


def _one_sequence() -> Packed:
    sequence = TrainSequence(
        token_ids=np.arange(4, dtype=np.int32),
        prompt_tokens=1,
        rollout_logprobs=np.full(3, -31.0, np.float32),
        versions=np.zeros(3, np.int32),
        reward=1.0,
        truncated=False,
    )
    return pack([sequence], step=0, advantages=[1.0], weights=[1.0], device=torch.device("cpu"))


def _seen(algorithm: AlgorithmConfig, *, recomputed: bool) -> LossStats:
    packed = _one_sequence()
    logprobs = packed.rollout_logprobs + torch.tensor(BROKEN)
    objective = Objective(algorithm, packed, logprobs if recomputed else None)
    if objective.wants_preview:
        objective.preview(logprobs)
    objective(logprobs, slice(0, 3))
    return objective.stats()


def test_the_ratio_of_gspo_is_of_the_whole_sequence_before_any_clamp() -> None:
    seen = _seen(AlgorithmConfig(loss_mode="gspo"), recomputed=False)
    assert seen.ratio.tolist() == pytest.approx([float(np.exp(-0.5 / 3))] * 3)


def test_the_weight_of_a_sequence_is_that_of_its_whole_ratio_before_any_clamp() -> None:
    correction = {"rollout_is": "sequence", "rollout_rs": "sequence"}
    algorithm = AlgorithmConfig.model_validate({"proximal": "recompute", "rollout_correction": correction})
    seen = _seen(algorithm, recomputed=True)
    assert (-seen.loss).tolist() == pytest.approx([float(np.exp(-0.5))] * 3)
    assert not seen.truncated.any()
    assert not seen.masked.any()


def test_a_mask_by_sequence_looks_at_the_whole_ratio_without_recomputed_logprobs_too() -> None:
    algorithm = AlgorithmConfig.model_validate({"rollout_correction": {"rollout_rs": "sequence"}})
    assert not _seen(algorithm, recomputed=False).masked.any()


def test_a_truncated_weight_of_the_current_weights_needs_no_recomputed_logprobs() -> None:
    correction = {"rollout_is": "sequence", "rollout_is_threshold": 0.5, "opsm_delta": 0.0}
    algorithm = AlgorithmConfig.model_validate({"loss_mode": "reinforce", "rollout_correction": correction})
    seen = _seen(algorithm, recomputed=False)
    assert (-seen.loss).tolist() == pytest.approx([0.5] * 3)  # of exp(-0.5) = .61
    assert seen.truncated.all()
    assert not seen.masked.any()  # the advantage is positive
