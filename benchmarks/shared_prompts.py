"""Training tokens per second with a group's prompt computed once, against computing it for each sample.

The same model, batch, budget and loss; only `learner.share_prompts` differs. Trained tokens are counted as
`learner/tokens_per_s` counts them, prompts included once a sample, so the ratio is that of the seconds. Three shapes: the
demo's short sums, prompts as long as answers, and long answers to short prompts, where nothing may be lost.

Public figures to stand beside: unsloth-zoo#868 2.55 times faster with 3.37 times less memory, verl#4368 an update 1.26 to
1.70 times faster at 4 to 8 thousand tokens.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.learner_packing import VOCABULARY, sequence, write_model
from benchmarks.report import Row
from services.learner.batches.batch import Batch, TrainGroup
from services.learner.distributed.ranks import Ranks, join_ranks
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.training.train_step import Trainer
from sluice.config.schema import Config

SHAPES = (
    (44, 21, 8, 16, 3, 1.8),
    (512, 512, 16, 1, 3, 1.0),
    (200, 8000, 16, 1, 1, 0.95),
)
"""Prompt tokens, longest answer, samples of a group, groups, measured rounds, and the ratio to reach; .95 is 1 in noise."""

BUDGET = 16384


def run() -> list[Row]:
    """One update of each shape and kind, in turns; medians."""
    torch.set_num_threads(1)
    ranks = join_ranks()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder), positions=16384)
        for shape in SHAPES:
            rows += _measure(path, ranks, *shape)
    ranks.leave()
    return rows


def _measure(
    path: Path, ranks: Ranks, prompt: int, answer: int, n: int, groups: int, rounds: int, target: float
) -> list[Row]:
    batch = _batch(prompt=prompt, answer=answer, n=n, groups=groups)
    trainers = {kind: _trainer(path, ranks, batch, kind) for kind in ("auto", "never")}
    rates: dict[str, list[float]] = {kind: [] for kind in trainers}
    saved = 0.0
    for index in range(rounds + 1):
        for kind, trainer in trainers.items():
            trainer.step = 0
            metrics = trainer.train(batch)
            if index:  # the first round warms up, and has the check of the two forms
                rates[kind].append(metrics["learner/tokens_per_s"])
            saved = max(saved, metrics["learner/prompt_tokens_saved"])
    shared, plain = (statistics.median(rates[kind]) for kind in ("auto", "never"))
    what = f"prompts {prompt}, answers {answer}, n {n}"
    tokens = sum(s.input_tokens for s in batch.sequences)
    return [
        Row(what=f"{what}: prompt for each sample", value=plain, unit="tokens/s", target="", met=True),
        Row(what=f"{what}: as it is by default", value=shared, unit="tokens/s", target="", met=True),
        Row(what=f"{what}: tokens not computed", value=saved / tokens, unit="", target="", met=True),
        Row(what=f"{what}: ratio", value=shared / plain, unit="", target=f">= {target}", met=shared / plain >= target),
    ]


def _trainer(path: Path, ranks: Ranks, batch: Batch, kind: str) -> Trainer:
    sizes = [s.completion_tokens for s in batch.sequences]
    config = Config.model_validate(
        {
            "model": {"path": str(path), "dtype": "float32"},
            "data": {
                "train_files": ["none.jsonl"],
                "train_batch_size": len(batch.groups),
                "max_response_length": max(sizes),
            },
            "rollout": {"n": len(batch.groups[0].sequences)},
            "learner": {"max_tokens_per_micro_batch": BUDGET, "share_prompts": kind},
        }
    )
    policy = load_policy(config, ranks)
    return Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)


def _batch(*, prompt: int, answer: int, n: int, groups: int) -> Batch:
    """Groups whose answers have up to `answer` tokens, the longest exactly as many."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(groups):
        ids = rng.integers(0, VOCABULARY, prompt)
        lengths = rng.integers(1 + answer // 2, answer + 1, n)
        lengths[0] = answer
        made.append(TrainGroup(group_id=f"g{number}", sequences=tuple(sequence(rng, ids, size) for size in lengths)))
    return Batch(step=0, digest="benchmark", groups=tuple(made))
