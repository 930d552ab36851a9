"""DAPO on one page: the reference that the learner is held to (arXiv:2503.14476, eq. 8-10 and 12).

One process, one sequence at a time, no packing, no padding, no micro-batches, and none of `sluice.dapo`: every formula
is written out a second time, those of the variants and corrections too. Groups are taken as kept by dynamic sampling
(eq. 11), rewards as shaped (eq. 13).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSample:
    """One completion of a prompt, or one episode with an environment."""

    completion_ids: list[int]
    rollout_logprobs: list[float]
    """One a sampled token, nats, under the distribution that was sampled from."""
    reward: float
    """Shaped."""
    acc: float = 0.0
    """1 right, 0 wrong."""
    truncated: bool = False
    """Whether it was cut at the length limit."""
    sampled: list[bool] | None = None
    """Which completion tokens the policy sampled; None: all. The others are context."""
    context_ids: list[int] | None = None
    """What stands before a part of an episode in place of the prompt."""
    later: tuple["ReferenceSample", ...] = ()
    """The rest of an episode whose history was rewritten: same sample, same reward."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceVariant:
    """What may differ from DAPO, by the names of the configuration."""

    loss_mode: str = "vanilla"
    adv_estimator: str = "grpo"
    ess_scaling: bool = False
    proximal: str = "rollout"
    rollout_is: str = "none"
    rollout_is_threshold: float = 2.0
    rollout_rs: str = "none"
    rollout_rs_threshold: float = 2.0
    opsm_delta: float | None = None


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
    variant: ReferenceVariant = ReferenceVariant(),
) -> list[ReferenceUpdate]:
    """One step: an optimizer update for every `mini_batch_size` groups, in order. The last gradients stay."""
    first = {}
    if variant.proximal == "recompute":
        with torch.no_grad():
            for group in groups:
                for sample in group.samples:
                    first[id(sample)] = reference_sampled_logprobs(model, group.prompt_ids, sample, temperature)
    updates = []
    for start in range(0, len(groups), mini_batch_size):
        token_losses, log_weights = [], []
        for group in groups[start : start + mini_batch_size]:
            advantages = reference_advantages([s.reward for s in group.samples], norm_by_std=norm_adv_by_std)
            if variant.adv_estimator == "maxrl":
                advantages = reference_maxrl([s.acc for s in group.samples])
            for sample, advantage in zip(group.samples, advantages, strict=True):
                if overlong_filtering and sample.truncated:
                    continue
                logprobs = reference_sampled_logprobs(model, group.prompt_ids, sample, temperature)
                rollout = torch.tensor([value for part in (sample, *sample.later) for value in part.rollout_logprobs])
                proximal = first[id(sample)] if variant.proximal == "recompute" else rollout
                losses = reference_token_losses(
                    logprobs, proximal, advantage, clip_ratio_low, clip_ratio_high, clip_ratio_c, variant.loss_mode
                )
                compared = proximal if variant.proximal == "recompute" else logprobs.detach()
                token_losses.append(losses * reference_correction(compared - rollout, advantage, variant))
                log_weights.append((logprobs.detach() - rollout).sum().item())
        loss = reference_aggregate(token_losses, loss_agg_mode, loss_scale_factor)
        optimizer.zero_grad()
        loss.backward()
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
        factor = reference_lr_factor(log_weights) if variant.ess_scaling else 1.0
        for parameters in optimizer.param_groups:
            parameters["lr"] *= factor
        optimizer.step()
        for parameters in optimizer.param_groups:
            parameters["lr"] /= factor
        updates.append(ReferenceUpdate(loss=loss.item(), grad_norm=grad_norm.item()))
    return updates


def reference_advantages(rewards: list[float], *, norm_by_std: bool) -> list[float]:
    """Eq. 9."""
    if len(rewards) == 1:
        return rewards
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(reward - mean) / (std + 1e-6) if norm_by_std else reward - mean for reward in rewards]


def reference_maxrl(accs: list[float]) -> list[float]:
    """arXiv:2602.02710, algorithm 1."""
    rate = statistics.fmean(accs)
    return [(acc - rate) / (rate + 1e-6) for acc in accs]


def reference_lr_factor(log_weights: list[float]) -> float:
    """arXiv:2602.17616: the root of the share of effective samples."""
    weights = [math.exp(value) for value in log_weights]
    return math.sqrt(sum(weights) ** 2 / (len(weights) * sum(weight**2 for weight in weights)))


def reference_logprobs(
    model: torch.nn.Module, prompt_ids: list[int], completion_ids: list[int], temperature: float
) -> Tensor:
    """[T] nats: log-probability of every completion token, given all tokens before it."""
    logits = model(input_ids=torch.tensor([prompt_ids + completion_ids])).logits[0].float() / temperature
    before_completion = torch.log_softmax(logits, dim=-1)[len(prompt_ids) - 1 : -1]
    return before_completion[torch.arange(len(completion_ids)), torch.tensor(completion_ids)]


def reference_sampled_logprobs(
    model: torch.nn.Module, prompt_ids: list[int], sample: ReferenceSample, temperature: float
) -> Tensor:
    """[A] nats: log-probability of every token that the policy sampled, given all tokens before it, observed ones too."""
    found = []
    for part in (sample, *sample.later):
        logprobs = reference_logprobs(model, part.context_ids or prompt_ids, part.completion_ids, temperature)
        found.append(logprobs if part.sampled is None else logprobs[torch.tensor(part.sampled)])
    return torch.cat(found)


def reference_token_losses(
    logprobs: Tensor,
    proximal: Tensor,
    advantage: float,
    clip_ratio_low: float,
    clip_ratio_high: float,
    clip_ratio_c: float | None,
    loss_mode: str = "vanilla",
) -> Tensor:
    """Eq. 8 and 10 of the [T] tokens of one sample, negated, with the dual clip (arXiv:1912.09729) if advantage < 0."""
    ratios = torch.exp(logprobs - proximal)
    if loss_mode == "cispo":  # arXiv:2506.13585, eq. 4
        return -torch.clamp(ratios.detach(), 1 - clip_ratio_low, 1 + clip_ratio_high) * advantage * logprobs
    if loss_mode == "gspo":  # arXiv:2507.18071, eq. 14: the sequence's ratio in value, the token's in gradient
        sequence = torch.exp((logprobs - proximal).mean()).detach()
        ratios = sequence * torch.exp(logprobs - logprobs.detach())
    if loss_mode == "reinforce":
        return -advantage * torch.exp(logprobs - logprobs.detach())
    if loss_mode == "sapo":  # arXiv:2511.20347
        tau = 1.0 if advantage > 0 else 1.05
        return -advantage * 4 / tau / (1 + torch.exp(-tau * (ratios - 1)))
    if loss_mode in ("dppo_tv", "dppo_kl", "ipo"):  # arXiv:2602.04879, and prime-rl
        inside = torch.tensor(
            [
                _inside(math.exp(p), math.exp(m), advantage, clip_ratio_low, clip_ratio_high, loss_mode)
                for p, m in zip(logprobs.tolist(), proximal.tolist(), strict=True)
            ]
        )
        weights = torch.clamp(ratios.detach(), max=clip_ratio_c)
        return -advantage * weights * inside * torch.exp(logprobs - logprobs.detach())
    clipped = torch.clamp(ratios, 1 - clip_ratio_low, 1 + clip_ratio_high)
    objective = torch.minimum(ratios * advantage, clipped * advantage)
    if advantage < 0 and clip_ratio_c is not None:
        objective = torch.clamp(objective, min=clip_ratio_c * advantage)
    return -objective


def _inside(p: float, m: float, advantage: float, low: float, high: float, loss_mode: str) -> bool:
    """Whether a token of probability p, sampled at m, stays in the loss."""
    if loss_mode == "ipo":
        return -low <= p - m <= high
    if loss_mode == "dppo_tv":
        return p - m <= high if advantage > 0 else m - p <= low
    divergence = m * math.log(m / p) + (1 - m) * math.log((1 - m) / (1 - p))
    return p <= m or divergence <= high if advantage > 0 else p >= m or divergence <= low


def reference_correction(log_ratios: Tensor, advantage: float, variant: ReferenceVariant) -> Tensor:
    """[T] factors of the token losses: truncated importance weight, or 0 where the ratio to the rollout is out of bounds."""

    def ratios(level: str) -> Tensor:
        whole = {"token": log_ratios, "sequence": log_ratios.sum(), "geometric": log_ratios.mean()}[level]
        return torch.exp(whole).expand_as(log_ratios)

    factors = torch.ones_like(log_ratios)
    if variant.rollout_is != "none":
        factors = torch.clamp(ratios(variant.rollout_is), max=variant.rollout_is_threshold)
    if variant.rollout_rs != "none":
        upper, found = variant.rollout_rs_threshold, ratios(variant.rollout_rs)
        factors = torch.where((found >= 1 / upper) & (found <= upper), factors, 0.0)
    if variant.opsm_delta is not None and advantage < 0 and -log_ratios.mean() > variant.opsm_delta:
        factors = torch.zeros_like(factors)
    return factors


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
