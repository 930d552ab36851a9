"""Every loss and correction at greater age: accuracy when the policy that samples is k optimizer updates behind, k = 1 to 16.

One process, one thread, a toy (simulated/written_sums.py): exact log-probabilities, so that age is all there is to correct. The
learner's own objective, advantages and weights of tokens train it with AdamW and dynamic sampling, one update a batch. Each
option is the `algorithm` section of a recipe, with the thresholds of its source; none was tuned here. The learning rate is the
better one for DAPO at k = 1 of .03 and .1. Accuracy is at temperature 1 on prompts drawn apart, over the last third of the
updates, so that a run that reached a peak and collapsed does not look well. What holds here need not hold for a large model;
what collapses here is a warning.
"""

import copy
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import Row
from benchmarks.simulated.written_sums import TOKENS, SumWriter, draw_prompts, logprobs_of, right, warmed_up
from services.learner.batches.batch import TrainSequence
from services.learner.policy.optimizer import take_step
from services.learner.policy.packing import Packed, pack
from services.learner.training.objective import Objective
from sluice.config.schema import AlgorithmConfig
from sluice.dapo.advantage import group_advantages, maxrl_advantages
from sluice.dapo.aggregation import token_weights
from sluice.dapo.step_scale import ess_step_scale

AGES = (1, 4, 8, 16)
SEEDS = (1, 2, 3)
_TIS = {"loss_mode": "reinforce", "rollout_correction": {"rollout_is": "sequence", "rollout_is_threshold": 2.0}}
_TIS_8 = {"rollout_is": "sequence", "rollout_is_threshold": 8.0}

OPTIONS: dict[str, dict[str, Any]] = {
    "DAPO's clip (the default)": {},
    "DAPO's clip, ESS-scaled steps": {"ess_scaling": True},
    "DAPO's clip, OPSM .1": {"rollout_correction": {"opsm_delta": 0.1}},
    "DAPO's clip, OPSM 1e-4": {"rollout_correction": {"opsm_delta": 1e-4}},
    "DAPO's clip, IcePop [.5, 2]": {"rollout_correction": {"rollout_rs": "token"}},
    "DAPO's clip, MaxRL": {"adv_estimator": "maxrl"},
    "GSPO": {
        "loss_mode": "gspo",
        "clip_ratio_low": 3e-4,
        "clip_ratio_high": 4e-4,
        "loss_agg_mode": "seq-mean-token-mean",
    },
    "CISPO": {"loss_mode": "cispo"},
    "DPPO, TV .15": {"loss_mode": "dppo_tv", "clip_ratio_low": 0.15, "clip_ratio_high": 0.15, "clip_ratio_c": 20.0},
    "DPPO, KL .05": {"loss_mode": "dppo_kl", "clip_ratio_low": 0.05, "clip_ratio_high": 0.05, "clip_ratio_c": 20.0},
    "IPO .3": {"loss_mode": "ipo", "clip_ratio_low": 0.3, "clip_ratio_high": 0.3, "clip_ratio_c": None},
    "SAPO 1, 1.05": {"loss_mode": "sapo"},
    "token TIS": {"loss_mode": "reinforce", "rollout_correction": {"rollout_is": "token"}},
    "sequence TIS": _TIS,
    "sequence TIS, MIS [.5, 2]": {
        "loss_mode": "reinforce",
        "rollout_correction": {"rollout_is": "sequence", "rollout_rs": "geometric"},
    },
    "sequence TIS 8, ESS-scaled steps": {"loss_mode": "reinforce", "rollout_correction": _TIS_8, "ess_scaling": True},
}
"""By name, sections `algorithm` of a recipe."""

_UPDATES, _EVERY = 72, 6
_GROUPS, _DRAWN, _SAMPLES = 16, 32, 8
_LR, _GRAD_CLIP = 3e-2, 1.0
_WARM_UP = {"steps": 400, "lr": 4e-3}
_HELD_OUT = 512


def run(options: Mapping[str, Mapping[str, Any]] = OPTIONS, ages: Sequence[int] = AGES) -> list[Row]:
    """A row a run, and a row a mean."""
    torch.set_num_threads(1)
    base = warmed_up(**_WARM_UP)
    found: dict[str, list[float]] = {}
    for seed in SEEDS:  # the outer loop, so that a sweep that is stopped has whole seeds
        for name, section in options.items():
            algorithm = AlgorithmConfig.model_validate(section)
            for age in ages:
                accuracy = _trained(base, algorithm, age=age, seed=seed)
                found.setdefault(f"{name}: k = {age}", []).append(accuracy)
                print(f"seed {seed}, {name}: k = {age}: {accuracy:.4f}", flush=True)
    rows = [_row("before", _accuracy(base, torch.Generator().manual_seed(99)))]
    for what, accuracies in found.items():
        rows += [_row(f"{what}, seed {seed}", value) for seed, value in zip(SEEDS, accuracies, strict=True)]
        rows.append(_row(what, statistics.fmean(accuracies)))
    return rows


def markdown(rows: Sequence[Row]) -> str:
    """The table of docs/losses.md: the mean of the seeds, and the lowest of them where it is more than .05 below."""
    values = {row.what: row.value for row in rows}
    lines = ["| option | " + " | ".join(f"k = {age}" for age in AGES) + " |", "|---" * (len(AGES) + 1) + "|"]
    for name in OPTIONS:
        cells = []
        for age in AGES:
            mean = values[f"{name}: k = {age}"]
            least = min(values[f"{name}: k = {age}, seed {seed}"] for seed in SEEDS)
            cells.append(f"{mean:.2f}" + (f" (lowest {least:.2f})" if mean - least > 0.05 else ""))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(what: str, value: float) -> Row:
    return Row(what=what, value=round(value, 4), unit="accuracy at temperature 1", target="", met=True)


def _trained(base: SumWriter, algorithm: AlgorithmConfig, *, age: int, seed: int) -> float:
    """Mean held-out accuracy over the last third of the updates."""
    policy, rollout, generator = copy.deepcopy(base), copy.deepcopy(base), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=_LR, betas=(0.9, 0.95), weight_decay=0.0)
    past = deque([_weights(policy)], maxlen=age + 1)
    accuracies = []
    for update in range(_UPDATES):
        for parameter, old in zip(rollout.parameters(), past[0], strict=True):
            parameter.data.copy_(old)
        _train(policy, optimizer, _drawn(rollout, generator), algorithm)
        past.append(_weights(policy))
        if update >= _UPDATES * 2 // 3 and update % _EVERY == _EVERY - 1:
            accuracies.append(_accuracy(policy, torch.Generator().manual_seed(99)))
    return statistics.fmean(accuracies)


def _weights(policy: SumWriter) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in policy.parameters()]


def _accuracy(policy: SumWriter, generator: torch.Generator) -> float:
    prompts = draw_prompts(_HELD_OUT, generator)
    return float(right(prompts, policy.sample(prompts, generator)[0]).float().mean())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Groups with signal, as a rollout sampled them: G groups of _SAMPLES completions, S in all."""

    prompts: Tensor
    """int64[S, 2, DIGITS]."""
    tokens: Tensor
    """int64[S, T]."""
    logprobs: Tensor
    """float32[S, T], nats, of the rollout."""
    accs: np.ndarray
    """float64[G, _SAMPLES]."""


def _drawn(rollout: SumWriter, generator: torch.Generator) -> _Batch:
    """At most _GROUPS of _DRAWN groups: those that dynamic sampling keeps (DAPO, eq. 11)."""
    prompts = draw_prompts(_DRAWN, generator).repeat_interleave(_SAMPLES, 0)
    tokens, logprobs = rollout.sample(prompts, generator)
    accs = right(prompts, tokens).double().view(_DRAWN, _SAMPLES).numpy()
    kept = np.flatnonzero(accs.min(1) < accs.max(1))[:_GROUPS].tolist()
    rows = (torch.tensor(kept, dtype=torch.int64)[:, None] * _SAMPLES + torch.arange(_SAMPLES)).flatten()
    return _Batch(prompts=prompts[rows], tokens=tokens[rows], logprobs=logprobs[rows], accs=accs[kept])


def _train(policy: SumWriter, optimizer: torch.optim.Optimizer, batch: _Batch, algorithm: AlgorithmConfig) -> None:
    """One update, as the learner takes it."""
    if not len(batch.accs):
        return
    packed = _packed(batch, algorithm)
    logprobs = logprobs_of(policy, batch.prompts, batch.tokens).flatten()
    objective = Objective(algorithm, packed, logprobs.detach() if algorithm.proximal == "recompute" else None)
    if objective.wants_preview:
        objective.preview(logprobs.detach())
    optimizer.zero_grad()
    objective(logprobs, slice(0, len(logprobs))).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), _GRAD_CLIP)
    factor = 1.0
    if algorithm.ess_scaling:
        log_weights = (logprobs.detach() - packed.rollout_logprobs).view(-1, TOKENS).double().sum(1)
        factor = ess_step_scale(log_weights.numpy())
    take_step(optimizer, lr_factor=factor)


def _packed(batch: _Batch, algorithm: AlgorithmConfig) -> Packed:
    """What the learner's objective sees of a batch; rewards are +1 and -1."""
    if algorithm.adv_estimator == "maxrl":
        found = [maxrl_advantages(accs) for accs in batch.accs]
    else:
        found = [group_advantages(2 * accs - 1, norm_by_std=True) for accs in batch.accs]
    weights = token_weights(np.full(len(batch.tokens), TOKENS), mode=algorithm.loss_agg_mode)
    return replace(
        _layout_of(len(batch.tokens)),
        targets=batch.tokens.flatten(),
        rollout_logprobs=batch.logprobs.flatten(),
        advantages=torch.from_numpy(np.concatenate(found)).float().repeat_interleave(TOKENS),
        weights=torch.from_numpy(weights).float().repeat_interleave(TOKENS),
    )


@cache
def _layout_of(samples: int) -> Packed:
    """So many completions of equal length, packed; which tokens they have comes later."""
    one = TrainSequence(
        token_ids=np.zeros(1 + TOKENS, np.int32),
        prompt_tokens=1,
        rollout_logprobs=np.zeros(TOKENS, np.float32),
        versions=np.zeros(TOKENS, np.int32),
        reward=0.0,
        truncated=False,
    )
    ones = [1.0] * samples
    return pack([one] * samples, step=0, advantages=ones, weights=ones, device=torch.device("cpu"))
