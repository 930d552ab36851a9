"""One training step: a batch of groups -> several optimizer updates (DAPO, arXiv:2503.14476, algorithm 1, lines 9-11).

The denominator of the loss is that of the whole mini-batch, all micro-batches and ranks together, so the gradient does
not depend on how the planner cut it. An update whose loss or gradient is not finite on any rank is skipped on all.

Letters: S sequences of the batch, M trained tokens of one micro-batch.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import structlog
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from services.learner.batch import Batch, TrainSequence, advantages
from services.learner.forward import Policy
from services.learner.model import learning_rate
from services.learner.packing import Packed, pack
from services.learner.plan import MiniBatch, plan_step
from services.learner.ranks import Ranks
from services.learner.tally import Tally
from sluice.config.schema import Config
from sluice.dapo.aggregation import token_weights
from sluice.dapo.loss import dapo_token_loss
from sluice.dapo.mismatch import mismatch
from sluice.errors import SluiceError

log = structlog.get_logger(__name__)


class Trainer:
    """Policy and optimizer of one rank. `step` counts completed steps: it is the number of the version held."""

    def __init__(self, *, policy: Policy, optimizer: torch.optim.Optimizer, config: Config, ranks: Ranks) -> None:
        self.policy = policy
        self.optimizer = optimizer
        self.step = 0
        self._config = config
        self._ranks = ranks
        self._skipped_in_a_row = 0

    def train(self, batch: Batch) -> dict[str, float]:
        """Trains on batch `step`, all ranks together; returns the metrics of the step, the same on every rank.

        Raises SluiceError when `learner.max_skipped_updates` updates in a row were not finite.
        """
        assert batch.step == self.step, f"holds version {self.step}, was given batch {batch.step}"
        started = time.perf_counter()
        lr = self._set_learning_rate()
        work = self._work(batch)
        updates = [self._update(mini_batch, work) for mini_batch in self._plan(batch, work)]
        self.step += 1
        metrics = self._metrics(updates, work) | {"loss/lr": lr}
        return metrics | _speed(work, time.perf_counter() - started)

    def _set_learning_rate(self) -> float:
        learner = self._config.learner
        lr = learning_rate(self.step, peak=learner.lr, warmup_steps=learner.warmup_steps)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = lr
        return lr

    def _work(self, batch: Batch) -> "_Work":
        algorithm = self._config.algorithm
        sequences = batch.sequences
        return _Work(
            sequences=sequences,
            advantages=advantages(batch.groups, norm_by_std=algorithm.norm_adv_by_std_in_grpo).tolist(),
            trained=[not (algorithm.overlong_filtering and s.truncated) for s in sequences],
        )

    def _plan(self, batch: Batch, work: "_Work") -> tuple[MiniBatch, ...]:
        return plan_step(
            group_sizes=batch.group_sizes,
            lengths=[s.input_tokens for s in work.sequences],
            trained=work.trained,
            groups_per_mini_batch=self._config.mini_batch_size,
            ranks=self._ranks.size,
            max_tokens=self._config.learner.max_tokens_per_micro_batch,
        )

    def _update(self, mini_batch: MiniBatch, work: "_Work") -> "_Update":
        """Sums the gradient over all micro-batches and ranks, clips it and lets the optimizer take one step."""
        weights = self._weights(mini_batch, work)
        self.optimizer.zero_grad()
        tally, seen = Tally(self._ranks.device), []
        for members in mini_batch.micro_batches[self._ranks.rank]:
            packed = pack(
                [work.sequences[s] for s in members],
                step=self.step,
                advantages=[work.advantages[s] for s in members],
                weights=[weights[s] for s in members],
                device=self._ranks.device,
            )
            seen.append(self._accumulate(packed, tally))
        tally.reduce(self._ranks)
        norm = self._apply(tally) if tally.tokens else None
        return _Update(tally=tally, norm=norm, seen=seen)

    def _weights(self, mini_batch: MiniBatch, work: "_Work") -> dict[int, float]:
        """The factor of each token loss, by sequence: the denominators are those of the whole mini-batch."""
        algorithm = self._config.algorithm
        trained_tokens = [work.trained_tokens(s) for s in mini_batch.sequences]
        weights = token_weights(
            np.array(trained_tokens),
            mode=algorithm.loss_agg_mode,
            loss_scale_factor=algorithm.loss_scale_factor or self._config.data.max_response_length,
        )
        return dict(zip(mini_batch.sequences, weights.tolist(), strict=True))

    def _accumulate(self, packed: Packed, tally: Tally) -> Tensor:
        """Forward and backward of one micro-batch. Returns float32[3, M]: behaviour and learner logprobs, ages."""
        algorithm = self._config.algorithm
        logprobs, entropies = self.policy(packed)
        token = dapo_token_loss(
            learner_logprobs=logprobs,
            behaviour_logprobs=packed.behaviour_logprobs,
            advantages=packed.advantages,
            clip_ratio_low=algorithm.clip_ratio_low,
            clip_ratio_high=algorithm.clip_ratio_high,
            clip_ratio_c=algorithm.clip_ratio_c,
        )
        (token.loss * packed.weights).sum().backward()
        tally.add(packed, token, entropies)
        return torch.stack([packed.behaviour_logprobs, logprobs.detach(), packed.ages.float()])

    def _apply(self, tally: Tally) -> float:
        """Clips and steps; returns the gradient norm before clipping, NaN or inf when the update was skipped.

        Loss and norm are sums over ranks, so every rank decides alike.
        """
        gradients = [p.grad for p in self.policy.parameters() if p.grad is not None]
        total = get_total_norm(gradients)
        norm = total.full_tensor() if isinstance(total, DTensor) else total
        if not math.isfinite(tally.loss) or not torch.isfinite(norm):
            self._skip(tally.loss, float(norm))
            return float("nan")
        clip_grads_with_norm_(self.policy.parameters(), self._config.learner.grad_clip, norm)
        self.optimizer.step()
        self._skipped_in_a_row = 0
        return float(norm)

    def _skip(self, loss: float, norm: float) -> None:
        self._skipped_in_a_row += 1
        log.warning("update_skipped", step=self.step, loss=loss, grad_norm=norm, in_a_row=self._skipped_in_a_row)
        if self._skipped_in_a_row >= self._config.learner.max_skipped_updates:
            raise SluiceError(
                f"step {self.step}: {self._skipped_in_a_row} updates in a row (learner.max_skipped_updates) had a loss "
                f"or gradient that is not finite; last loss {loss}, gradient norm {norm}"
            )

    def _metrics(self, updates: list["_Update"], work: "_Work") -> dict[str, float]:
        norms = [update.norm for update in updates if update.norm is not None]
        done = [update for update in updates if update.norm is not None and math.isfinite(update.norm)]
        total = Tally(self._ranks.device)
        for update in done:
            total.merge(update.tally)
        metrics = total.metrics(updates=len(done))
        if done:
            metrics["loss/grad_norm"] = float(np.mean([norm for norm in norms if math.isfinite(norm)]))
        return (
            metrics
            | self._mismatch(updates[0])
            | {
                "learner/updates": len(done),
                "learner/skipped_updates": len(norms) - len(done),
                "learner/trained_tokens": sum(work.trained_tokens(s) for s in range(len(work.sequences))),
            }
        )

    def _mismatch(self, first: "_Update") -> dict[str, float]:
        """`mismatch/*` over the first update's tokens, the only ones that the step's own version was asked about."""
        if first.norm is None or not math.isfinite(first.norm):
            return {}
        behaviour, learner, ages = self._ranks.join_columns(torch.cat(first.seen, dim=1)).cpu().numpy()
        return mismatch(behaviour_logprobs=behaviour, learner_logprobs=learner, ages=ages.astype(np.int32))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """A batch, flat."""

    sequences: list[TrainSequence]
    advantages: list[float]
    """[S]."""
    trained: list[bool]
    """[S]: whether the sequence is in the loss."""

    def trained_tokens(self, sequence: int) -> int:
        return self.sequences[sequence].completion_tokens if self.trained[sequence] else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Update:
    """What one mini-batch did."""

    tally: Tally
    norm: float | None
    """Gradient norm; not finite when skipped, None when no token of the mini-batch is in the loss."""
    seen: list[Tensor]
    """float32[3, M] of each of this rank's micro-batches."""


def _speed(work: _Work, elapsed_s: float) -> dict[str, float]:
    tokens = sum(len(s.token_ids) for s, trained in zip(work.sequences, work.trained, strict=True) if trained)
    return {"learner/train_s": elapsed_s, "learner/tokens_per_s": tokens / elapsed_s}
