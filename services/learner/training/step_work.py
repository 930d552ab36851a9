"""What a training step works on, and what its updates came to.

Letters: S sequences of the batch, M trained tokens of one micro-batch.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from torch import Tensor

from services.learner.batches.batch import TrainSequence
from services.learner.batches.step_plan import MiniBatch
from services.learner.training.tally import Tally


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """A step's work as flat lists: the batch's sequences, their advantages, and which sequences are in the loss."""

    sequences: list[TrainSequence]
    groups: list[int]
    """[S]: the number of each sequence's group."""
    advantages: list[float]
    """[S]."""
    trained: list[bool]
    """[S]: whether the sequence is in the loss."""
    split: bool
    """Whether some sequence has a prompt that differs from its group's: then no prompt is shared."""

    @property
    def trained_lengths(self) -> list[int]:
        """Input tokens of each sequence in the loss."""
        return [s.input_tokens for s, trained in zip(self.sequences, self.trained, strict=True) if trained]

    def trained_tokens(self, sequence: int) -> int:
        """Sampled tokens of the sequence in the loss."""
        return self.sequences[sequence].sampled_tokens if self.trained[sequence] else 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """The outcome of one mini-batch."""

    tally: Tally
    norm: float | None
    """Gradient norm; NaN when skipped, None when no token of the mini-batch is in the loss."""
    lr_factor: float
    """What the learning rate was multiplied by."""
    seen: list[Tensor]
    """For each of this rank's micro-batches float32[3, M]: rollout and learner log-probabilities, ages."""

    @property
    def skipped(self) -> bool:
        """Whether loss or gradient was not finite, so that nothing was changed."""
        return self.norm is not None and not math.isfinite(self.norm)


def shared_prompts(plan: Sequence[MiniBatch], work: Work) -> list[int]:
    """The tokens of each prompt that was not computed again, over all ranks."""
    found = []
    for mini_batch in plan:
        for micro_batch in chain(*mini_batch.micro_batches) if mini_batch.saved_tokens else ():
            for _, members in groupby(micro_batch, key=lambda s: work.groups[s]):
                _, *others = members
                found += [work.sequences[s].prompt_tokens for s in others]
    return found


def speed(work: Work, elapsed_s: float) -> dict[str, float]:
    """`learner/train_s` and `learner/tokens_per_s` of a step."""
    tokens = sum(len(s.token_ids) for s, trained in zip(work.sequences, work.trained, strict=True) if trained)
    return {"learner/train_s": elapsed_s, "learner/tokens_per_s": tokens / elapsed_s}
