"""Sums over whole samples where a sample is several training sequences: an episode whose history the template rewrote.

A ratio of a sequence (GSPO's, and those of `rollout_is`, `rollout_rs` and `opsm_delta`) is a sum over the sample's tokens, and
the sequences of a sample may lie in several micro-batches and on several ranks. So an update with such samples is rehearsed:
the objective is made for each micro-batch, without gradients, and the sums that it asks for are collected. Then each sum is
that of all ranks, and the update asks for the same sums in the same order.

Letters: M targets of one micro-batch on this rank, Q samples of the mini-batch.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from services.learner.batches.batch import TrainSequence, samples_of
from services.learner.batches.step_plan import MiniBatch
from services.learner.distributed.ranks import Ranks
from services.learner.policy.forward import Policy
from services.learner.policy.packing import Packed
from services.learner.training.objective import Objective
from sluice.config.schema import AlgorithmConfig

_LEVELS = ("sequence", "geometric")


class WholeSamples:
    """The sums of one mini-batch over its samples."""

    def __init__(self, mini_batch: MiniBatch, sequences: Sequence[TrainSequence], *, data_rank: int) -> None:
        """sequences: those of the batch; data_rank: the place of this rank's micro-batches in the plan."""
        self._samples, number = numbered(mini_batch, sequences)
        self._numbers = [[number[s] for s in members] for members in mini_batch.micro_batches[data_rank]]
        self._totals: list[Tensor] = []
        self._rehearsed = False
        self._asked = 0

    def rehearse(
        self,
        micro_batches: Iterable[Packed],
        proximal: Sequence[Tensor | None],
        *,
        algorithm: AlgorithmConfig,
        policy: Policy,
        ranks: Ranks,
    ) -> None:
        """Collects the sums of all ranks. Collective; a forward pass where the loss compares the current weights."""
        for index, (packed, known) in enumerate(zip(micro_batches, proximal, strict=True)):
            objective = Objective(algorithm, self.by_sample(packed, index), known, add_up=self.add_up)
            if objective.wants_preview:
                objective.preview(policy(packed, None)[1])
        for total in self._totals:
            ranks.add_up(total)
        self._rehearsed = True

    def by_sample(self, packed: Packed, index: int) -> Packed:
        """Micro-batch `index` with the mini-batch's samples in place of the micro-batch's sequences."""
        self._asked = 0
        numbers = packed.sequence.new_tensor(self._numbers[index] or [0])
        return replace(packed, sequence=numbers[packed.sequence], sequences=self._samples)

    def add_up(self, sums: Tensor) -> Tensor:
        """[Q] sums over this micro-batch's tokens -> those over all tokens of each sample, once they are known."""
        place, self._asked = self._asked, self._asked + 1
        if self._rehearsed:
            return self._totals[place]
        if place == len(self._totals):
            self._totals.append(sums.clone())
        else:
            self._totals[place] += sums
        return sums


def numbered(mini_batch: MiniBatch, sequences: Sequence[TrainSequence]) -> tuple[int, dict[int, int]]:
    """The samples of a mini-batch, Q, and of each of its sequences the number of the sample, from 0."""
    of_samples = samples_of([sequences[s] for s in mini_batch.sequences]).tolist()
    return of_samples[-1] + 1, dict(zip(mini_batch.sequences, of_samples, strict=True))


def sums_samples(algorithm: AlgorithmConfig, sequences: Sequence[TrainSequence]) -> bool:
    """Whether the loss sums over samples, and one of the samples is several sequences."""
    correction = algorithm.rollout_correction
    whole = (
        algorithm.loss_mode == "gspo"
        or correction.rollout_is in _LEVELS
        or correction.rollout_rs in _LEVELS
        or correction.opsm_delta is not None
    )
    return whole and any(s.continues for s in sequences)
