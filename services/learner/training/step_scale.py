"""The factor of one update's learning rate with `algorithm.ess_scaling`: how even the weights of its samples are.

The log-probabilities are those of the update's own forward pass. Sums over a sample's tokens are over all ranks, since its
sequences and slices may be anywhere, so the factor is the same on every rank and however the mini-batch was cut.

Letters: M targets of one micro-batch on this rank, Q samples of the mini-batch.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from services.learner.batches.batch import TrainSequence
from services.learner.batches.step_plan import MiniBatch
from services.learner.distributed.ranks import Ranks
from services.learner.policy.packing import Packed
from services.learner.training.whole_samples import numbered
from sluice.dapo.step_scale import ess_step_scale


class StepScale:
    """Log-weights of the samples of one mini-batch, learner over rollout, summed micro-batch by micro-batch."""

    def __init__(
        self, mini_batch: MiniBatch, sequences: Sequence[TrainSequence], *, data_rank: int, ranks: Ranks
    ) -> None:
        """sequences: those of the batch; data_rank: the place of this rank's micro-batches in the plan."""
        samples, number = numbered(mini_batch, sequences)
        self._numbers = [[number[s] for s in members] for members in mini_batch.micro_batches[data_rank]]
        self._trained = sorted({number[s] for s in chain(*chain(*mini_batch.micro_batches))})
        self._log_weights = torch.zeros(samples, dtype=torch.float64, device=ranks.device)
        self._ranks = ranks

    def add(self, index: int, packed: Packed, logprobs: Tensor) -> None:
        """Counts micro-batch `index`. logprobs: float32[M] nats under the update's weights."""
        numbers = packed.sequence.new_tensor(self._numbers[index] or [0])
        log_ratios = (logprobs - packed.rollout_logprobs).double()
        self._log_weights.index_add_(0, numbers[packed.sequence], log_ratios)

    def factor(self) -> float:
        """In (0, 1]. Collective; ask once, after all micro-batches, and only where some sample is in the loss."""
        self._ranks.add_up(self._log_weights)
        return ess_step_scale(self._log_weights[self._trained].cpu().numpy())
