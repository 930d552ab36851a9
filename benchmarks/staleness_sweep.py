"""Every loss and correction at greater age: accuracy when the policy that samples is k optimizer updates behind, k = 1 to 16.

One process, one thread, a toy (simulated/written_sums.py): exact log-probabilities, so that age is all there is to correct. The
learner's own objective, advantages, weights of tokens, AdamW and dynamic sampling train it, one update a batch. Each option is
the `algorithm` section of a recipe, with the thresholds of its source; none was tuned here. The learning rate is the best for
DAPO at k = 1 of .002, .008 and .03. Accuracy is at temperature 1 on prompts drawn apart, over the last third of the updates, so that a run that
reached a peak and collapsed does not look well. What holds here need not hold for a large model; what collapses here is a
warning.
"""

import copy
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.report import Row
from benchmarks.simulated.written_sums import TOKENS, SumWriter, draw_prompts, logprobs_of, right, warmed_up
from services.learner.batches.batch import TrainGroup, TrainSequence, advantages
from services.learner.policy.optimizer import take_step
from services.learner.policy.packing import Packed, pack
from services.learner.training.objective import Objective
from sluice.config.schema import AlgorithmConfig
from sluice.dapo.aggregation import token_weights
from sluice.dapo.dynamic_sampling import Verdict, judge
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
    "recomputed, token TIS": {"proximal": "recompute", "rollout_correction": {"rollout_is": "token"}},
    "token TIS": {"loss_mode": "reinforce", "rollout_correction": {"rollout_is": "token"}},
    "sequence TIS": _TIS,
    "sequence TIS, MIS [.5, 2]": {
        "loss_mode": "reinforce",
        "rollout_correction": {"rollout_is": "sequence", "rollout_rs": "geometric"},
    },
    "sequence TIS 8, ESS-scaled steps": {"loss_mode": "reinforce", "rollout_correction": _TIS_8, "ess_scaling": True},
}
"""By name, sections `algorithm` of a recipe."""

_UPDATES, _EVERY = 120, 10
_GROUPS, _DRAWN, _SAMPLES = 16, 32, 8
_LR, _GRAD_CLIP = 3e-2, 1.0
_WARM_UP = {"steps": 1000, "lr": 4e-3}
_HELD_OUT = 512


def run(options: Mapping[str, Mapping[str, Any]] = OPTIONS, ages: Sequence[int] = AGES) -> list[Row]:
    """A row a run, and a row a mean."""
    torch.set_num_threads(1)
    base = warmed_up(**_WARM_UP)
    rows = [_row("before", _accuracy(base, torch.Generator().manual_seed(99)))]
    for name, section in options.items():
        algorithm = AlgorithmConfig.model_validate(section)
        for age in ages:
            found = {seed: _trained(base, algorithm, age=age, seed=seed) for seed in SEEDS}
            print(f"{name}: k = {age}: {[round(value, 3) for value in found.values()]}", flush=True)
            rows += [_row(f"{name}: k = {age}, seed {seed}", value) for seed, value in found.items()]
            rows.append(_row(f"{name}: k = {age}", statistics.fmean(found.values())))
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
    policy, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=_LR, betas=(0.9, 0.95), weight_decay=0.0)
    past = deque([copy.deepcopy(policy)], maxlen=age + 1)
    accuracies = []
    for update in range(_UPDATES):
        _train(policy, optimizer, *_drawn(past[0], generator), algorithm)
        past.append(copy.deepcopy(policy))
        if update >= _UPDATES * 2 // 3 and update % _EVERY == _EVERY - 1:
            accuracies.append(_accuracy(policy, torch.Generator().manual_seed(99)))
    return statistics.fmean(accuracies)


def _accuracy(policy: SumWriter, generator: torch.Generator) -> float:
    prompts = draw_prompts(_HELD_OUT, generator)
    return float(right(prompts, policy.sample(prompts, generator)[0]).float().mean())


def _drawn(rollout: SumWriter, generator: torch.Generator) -> tuple[Tensor, list[TrainGroup]]:
    """int64[S, 2, DIGITS] prompts and the groups with signal, at most a batch of them, as `rollout` sampled them."""
    prompts = draw_prompts(_DRAWN, generator).repeat_interleave(_SAMPLES, 0)
    tokens, logprobs = rollout.sample(prompts, generator)
    accs = right(prompts, tokens).double().view(_DRAWN, _SAMPLES).numpy()
    kept = [g for g in range(_DRAWN) if judge(metric=accs[g], acc=accs[g]) is Verdict.KEPT][:_GROUPS]
    rows = torch.tensor([g * _SAMPLES + i for g in kept for i in range(_SAMPLES)], dtype=torch.int64)
    groups = [_group(g, tokens, logprobs, accs[g]) for g in kept]
    return prompts[rows], groups


def _group(number: int, tokens: Tensor, logprobs: Tensor, accs: np.ndarray) -> TrainGroup:
    first = number * _SAMPLES
    sequences = [
        TrainSequence(
            token_ids=np.concatenate([[0], tokens[first + i].numpy()]).astype(np.int32),
            prompt_tokens=1,
            rollout_logprobs=logprobs[first + i].numpy(),
            versions=np.zeros(TOKENS, np.int32),
            reward=float(2 * acc - 1),
            truncated=False,
            acc=float(acc),
        )
        for i, acc in enumerate(accs)
    ]
    return TrainGroup(group_id=str(number), sequences=tuple(sequences))


def _train(
    policy: SumWriter,
    optimizer: torch.optim.Optimizer,
    prompts: Tensor,
    groups: list[TrainGroup],
    algorithm: AlgorithmConfig,
) -> None:
    """One update, as the learner takes it."""
    if not groups:
        return
    packed = _packed(groups, algorithm)
    logprobs = logprobs_of(policy, prompts, packed.targets.view(-1, TOKENS)).flatten()
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


def _packed(groups: list[TrainGroup], algorithm: AlgorithmConfig) -> Packed:
    sequences = [sequence for group in groups for sequence in group.sequences]
    found = advantages(groups, norm_by_std=algorithm.norm_adv_by_std_in_grpo, maxrl=algorithm.adv_estimator == "maxrl")
    weights = token_weights(np.full(len(sequences), TOKENS), mode=algorithm.loss_agg_mode)
    return pack(sequences, step=0, advantages=found.tolist(), weights=weights.tolist(), device=torch.device("cpu"))
