"""DAPO on one page: the reference that the learner is held to (arXiv:2503.14476, eq. 8-10 and 12).

One process, one sequence at a time, no packing, no padding, no micro-batches, and none of `sluice.dapo`: every formula
is written out a second time. Groups are taken as kept by dynamic sampling (eq. 11), rewards as shaped (eq. 13).
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSample:
    """One completion of a prompt."""

    completion_ids: list[int]
    behaviour_logprobs: list[float]
    """One a completion token, nats, under the distribution that was sampled from."""
    reward: float
    """Shaped."""
    truncated: bool = False
    """Whether it was cut at the length limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceGroup:
    """The samples of one prompt."""

    prompt_ids: list[int]
    samples: list[ReferenceSample]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceUpdate:
    """What one optimizer update reports."""

    loss: float
    grad_norm: float
    """Before clipping."""


def reference_update(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[ReferenceGroup],
    *,
    mini_batch_size: int,
    temperature: float,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float | None,
    loss_agg_mode: str,
    norm_adv_by_std: bool,
    grad_clip: float,
    loss_scale_factor: float | None = None,
    overlong_filtering: bool = False,
) -> list[ReferenceUpdate]:
    """One step: an optimizer update for every `mini_batch_size` groups, in order. The last gradients stay."""
    updates = []
    for start in range(0, len(groups), mini_batch_size):
        token_losses = []
        for group in groups[start : start + mini_batch_size]:
            advantages = reference_advantages([s.reward for s in group.samples], norm_by_std=norm_adv_by_std)
            for sample, advantage in zip(group.samples, advantages, strict=True):
                if overlong_filtering and sample.truncated:
                    continue
                logprobs = reference_logprobs(model, group.prompt_ids, sample.completion_ids, temperature)
                ratios = torch.exp(logprobs - torch.tensor(sample.behaviour_logprobs))
                token_losses.append(
                    reference_token_losses(ratios, advantage, clip_ratio_low, clip_ratio_high, clip_ratio_c)
                )
        loss = reference_aggregate(token_losses, loss_agg_mode, loss_scale_factor)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        optimizer.step()
        updates.append(ReferenceUpdate(loss=loss.item(), grad_norm=grad_norm.item()))
    return updates


def reference_advantages(rewards: list[float], *, norm_by_std: bool) -> list[float]:
    """Eq. 9."""
    if len(rewards) == 1:
        return rewards
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(reward - mean) / (std + 1e-6) if norm_by_std else reward - mean for reward in rewards]


def reference_logprobs(
    model: torch.nn.Module, prompt_ids: list[int], completion_ids: list[int], temperature: float
) -> Tensor:
    """[T] nats: log-probability of every completion token, given all tokens before it."""
    logits = model(input_ids=torch.tensor([prompt_ids + completion_ids])).logits[0].float() / temperature
    before_completion = torch.log_softmax(logits, dim=-1)[len(prompt_ids) - 1 : -1]
    return before_completion[torch.arange(len(completion_ids)), torch.tensor(completion_ids)]


def reference_token_losses(
    ratios: Tensor, advantage: float, clip_ratio_low: float, clip_ratio_high: float, clip_ratio_c: float | None
) -> Tensor:
    """Eq. 8 and 10 of the [T] tokens of one sample, negated, with the dual clip (arXiv:1912.09729) if advantage < 0."""
    clipped = torch.clamp(ratios, 1 - clip_ratio_low, 1 + clip_ratio_high)
    objective = torch.minimum(ratios * advantage, clipped * advantage)
    if advantage < 0 and clip_ratio_c is not None:
        objective = torch.clamp(objective, min=clip_ratio_c * advantage)
    return -objective


def reference_aggregate(token_losses: list[Tensor], mode: str, loss_scale_factor: float | None) -> Tensor:
    """Eq. 12 (`token-mean`) and the other modes, literally, over the [T_s] token losses of every trained sequence."""
    if mode == "token-mean":
        return torch.cat(token_losses).mean()
    if mode == "seq-mean-token-mean":
        return torch.stack([losses.mean() for losses in token_losses]).mean()
    mean_of_sums = torch.stack([losses.sum() for losses in token_losses]).mean()
    if mode == "seq-mean-token-sum":
        return mean_of_sums
    assert mode == "seq-mean-token-sum-norm", mode
    assert loss_scale_factor is not None
    return mean_of_sums / loss_scale_factor
