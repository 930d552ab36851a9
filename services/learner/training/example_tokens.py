"""What a step's updates computed for the tokens of one group, gathered for people. Changes nothing of the step.

Letters: M targets of one micro-batch here, A sampled tokens of the group, S sequences of the batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from services.learner.batches.batch import Batch
from services.learner.distributed.ranks import Ranks
from services.learner.policy.packing import Packed
from sluice.run_dir.token_figures import TokenFigures, example_of


class ExampleTokens:
    """Of one step on one rank: fed with each micro-batch, joined over the ranks at the end."""

    def __init__(self, batch: Batch, ranks: Ranks) -> None:
        place = example_of(batch.step, len(batch.groups))
        self._group, self._ranks = batch.groups[place], ranks
        first = sum(batch.group_sizes[:place])
        self._sequences = range(first, first + batch.group_sizes[place])
        self._parts = [torch.full((4, 1), -1.0, device=ranks.device)]
        """float32[4, M]: sequence, place among the micro-batch's targets, log ratio, entropy. The first column is of no
        sequence: a rank without any token of the group has something to gather too."""

    def add(self, members: Sequence[int], packed: Packed, logprobs: Tensor, entropies: Tensor) -> None:
        """members: the sequences of the micro-batch, of all S, as they were packed. logprobs, entropies: float32[M] nats."""
        if not any(s in self._sequences for s in members):
            return
        sequence = torch.tensor(members, dtype=torch.float32, device=logprobs.device)[packed.sequence]
        wanted = (sequence >= self._sequences.start) & (sequence < self._sequences.stop)
        here = torch.arange(len(sequence), device=logprobs.device) if packed.part is None else packed.part.here
        found = torch.stack([sequence, here.float(), logprobs - packed.rollout_logprobs, entropies])
        self._parts.append(found[:, wanted])

    def joined(self) -> TokenFigures:
        """The figures of the whole group, on every rank. Collective."""
        columns = self._ranks.join_columns(torch.cat(self._parts, dim=1)).cpu().numpy()
        columns = columns[:, columns[0] >= 0]
        columns = columns[:, np.lexsort((columns[1], columns[0]))]
        trained = set(columns[0].astype(int).tolist())
        places = [
            np.full(one.sampled_tokens, s in trained)
            for s, one in zip(self._sequences, self._group.sequences, strict=True)
        ]
        figures = np.full((2, sum(map(len, places))), np.nan, np.float32)
        figures[:, np.concatenate(places)] = columns[2:]
        return TokenFigures(group_id=self._group.group_id, log_ratios=figures[0], entropies=figures[1])
