"""AdamW and its learning rate, which is a function of the training step: all updates of a step share a rate, as in verl."""

import math
from typing import Literal

import torch

from services.learner.policy.forward import Policy
from sluice.config.schema import Config


def make_optimizer(policy: Policy, config: Config) -> torch.optim.AdamW:
    """AdamW over the trained parameters; the learning rate is set at every step.

    Weight decay is for matrices: norms' gains and biases (one dimension) are left alone.
    """
    learner = config.learner
    trained = [p for p in policy.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": learner.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learner.lr, betas=learner.betas, fused=True
    )


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup_steps: int,
    total_steps: int,
    kind: Literal["constant", "linear", "cosine"],
    min_ratio: float,
) -> float:
    """The rate of step `step`: a linear warm-up (step 0 trains at peak / warmup_steps), then constant or a decay.

    A decay is at the peak in the first step after the warm-up and reaches `min_ratio` x peak at `total_steps`; the rate stays
    at that value in a run that is made longer.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if kind == "constant":
        return peak
    passed = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    remaining = 1 - passed if kind == "linear" else (1 + math.cos(math.pi * passed)) / 2
    return peak * (min_ratio + (1 - min_ratio) * remaining)


def take_step(optimizer: torch.optim.Optimizer, *, lr_factor: float) -> None:
    """One step at `lr_factor` times the learning rate of each group of parameters, which stays as it was."""
    lrs = [group["lr"] for group in optimizer.param_groups]
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr * lr_factor
    optimizer.step()
    for group, lr in zip(optimizer.param_groups, lrs, strict=True):
        group["lr"] = lr
