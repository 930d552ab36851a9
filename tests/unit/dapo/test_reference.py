"""The single-process reference agrees with the pieces of `sluice.dapo`, written independently of each other."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sluice.dapo.advantage import group_advantages
from sluice.dapo.aggregation import LOSS_AGG_MODES, token_weights
from sluice.dapo.loss import dapo_token_loss
from tests.reference_dapo import ReferenceGroup, ReferenceSample, reference_logprobs, reference_update

VOCABULARY = 7
CLIPS: dict[str, Any] = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0}


class Bigram(torch.nn.Module):
    """The smallest language model: the next token depends on the last one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(VOCABULARY, VOCABULARY)

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table(input_ids))


def _groups(seed: int, count: int) -> list[ReferenceGroup]:
    """Groups of three samples of one to five tokens, off-policy enough that every clip is active somewhere."""
    random = np.random.default_rng(seed)

    def sample(index: int) -> ReferenceSample:
        tokens = int(random.integers(1, 6))
        return ReferenceSample(
            completion_ids=random.integers(0, VOCABULARY, tokens).tolist(),
            rollout_logprobs=random.uniform(-4.0, -1.0, tokens).tolist(),
            reward=float(random.normal()),
            truncated=index == 2,
        )

    return [ReferenceGroup(prompt_ids=[1, 2], samples=[sample(i) for i in range(3)]) for _ in range(count)]


def _gradient_of_the_pieces(model: Bigram, groups: list[ReferenceGroup], *, mode: str, filtering: bool) -> torch.Tensor:
    """The same update by `sluice.dapo`: packed tokens, one weight a sequence."""
    samples = [(group, sample) for group in groups for sample in group.samples]
    advantages = np.concatenate(
        [group_advantages(np.array([s.reward for s in group.samples]), norm_by_std=True) for group in groups]
    )
    lengths = np.array([len(sample.completion_ids) for _, sample in samples])
    trained = np.array([0 if filtering and s.truncated else n for n, (_, s) in zip(lengths, samples, strict=True)])
    weights = token_weights(trained, mode=mode, loss_scale_factor=5.0)
    learner = torch.cat([reference_logprobs(model, g.prompt_ids, s.completion_ids, 0.7) for g, s in samples])
    out = dapo_token_loss(
        learner_logprobs=learner,
        proximal_logprobs=torch.tensor([p for _, s in samples for p in s.rollout_logprobs]),
        advantages=torch.from_numpy(np.repeat(advantages, lengths)),
        **CLIPS,
    )
    assert out.clipped_high.any()
    assert out.clipped_low.any()
    assert out.clipped_dual.any()
    loss = (out.loss * torch.from_numpy(np.repeat(weights, lengths))).sum()
    return torch.autograd.grad(loss, model.table.weight)[0]


@pytest.mark.parametrize("filtering", [False, True])
@pytest.mark.parametrize("mode", LOSS_AGG_MODES)
def test_the_reference_gradient_is_that_of_the_pieces(mode: str, filtering: bool) -> None:
    torch.manual_seed(0)
    model, groups = Bigram(), _groups(seed=0, count=6)
    expected = _gradient_of_the_pieces(model, groups, mode=mode, filtering=filtering)
    (update,) = reference_update(
        model,
        torch.optim.SGD(model.parameters(), lr=0.0),
        groups,
        mini_batch_size=6,
        temperature=0.7,
        loss_agg_mode=mode,
        loss_scale_factor=5.0,
        norm_adv_by_std=True,
        grad_clip=1e9,
        overlong_filtering=filtering,
        **CLIPS,
    )
    assert model.table.weight.grad is not None
    torch.testing.assert_close(model.table.weight.grad, expected.float(), atol=1e-6, rtol=1e-5)
    assert update.grad_norm == pytest.approx(expected.norm().item(), rel=1e-5)


def test_the_reference_takes_one_optimizer_update_a_mini_batch_and_makes_good_samples_likelier() -> None:
    torch.manual_seed(0)
    model = Bigram()
    good, bad = [3, 4], [5, 6]

    def logprob(completion: list[int]) -> float:
        return reference_logprobs(model, [1], completion, 1.0).sum().item()

    def sample(completion: list[int], reward: float) -> ReferenceSample:
        logprobs = reference_logprobs(model, [1], completion, 1.0).tolist()
        return ReferenceSample(completion_ids=completion, rollout_logprobs=logprobs, reward=reward)

    group = ReferenceGroup(prompt_ids=[1], samples=[sample(good, 1.0), sample(bad, -1.0)])
    before = logprob(good), logprob(bad)
    updates = reference_update(
        model,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [group] * 5,
        mini_batch_size=2,
        temperature=1.0,
        loss_agg_mode="token-mean",
        norm_adv_by_std=True,
        grad_clip=1.0,
        **CLIPS,
    )
    assert len(updates) == 3
    assert updates[0].loss == pytest.approx(0.0, abs=1e-6)  # on-policy: minus the mean advantage
    assert logprob(good) > before[0]
    assert logprob(bad) < before[1]
