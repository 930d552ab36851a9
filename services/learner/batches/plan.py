"""Which sequences go into which optimizer update, micro-batch and rank. Pure and deterministic.

Every rank computes the same plan from the same lengths, so ranks need not agree on a plan at run time. Nothing needs to be
divisible by anything: a rank with too little work gets empty micro-batches, because FSDP's collectives need equal counts.

Letters: S sequences of a batch, R ranks.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class MiniBatch:
    """One optimizer update."""

    sequences: tuple[int, ...]
    """Indices into the batch's sequences; whole groups, in batch order."""
    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]
    """[R][M]: micro-batch m of rank r as indices into the batch's sequences, longest first; may be empty."""


def plan_step(
    *,
    group_sizes: Sequence[int],
    lengths: Sequence[int],
    trained: Sequence[bool],
    groups_per_mini_batch: int,
    ranks: int,
    max_tokens: int,
    rows: bool = False,
) -> tuple[MiniBatch, ...]:
    """Cuts a batch into mini-batches of `groups_per_mini_batch` groups; the last is smaller when groups do not divide.

    lengths, trained: [S], input tokens of each sequence, and whether the sequence is in the loss; a sequence outside the
    loss stays in `sequences` but is in no micro-batch. `max_tokens` is the budget of one micro-batch on one rank. With `rows`
    a micro-batch is padded to its longest sequence, and the padding counts.
    """
    starts = [0]
    for size in group_sizes:
        starts.append(starts[-1] + size)
    mini_batches = []
    for first in range(0, len(group_sizes), groups_per_mini_batch):
        last = min(first + groups_per_mini_batch, len(group_sizes))
        sequences = tuple(range(starts[first], starts[last]))
        work = [s for s in sequences if trained[s]]
        cut = _cut_rows if rows else _spread
        micro_batches = cut(work, lengths=lengths, ranks=ranks, max_tokens=max_tokens)
        mini_batches.append(MiniBatch(sequences=sequences, micro_batches=micro_batches))
    return tuple(mini_batches)


def _spread(
    sequences: Sequence[int], *, lengths: Sequence[int], ranks: int, max_tokens: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The fewest micro-batches a rank within the budget; micro-batches of like size run side by side on the ranks."""
    longest_first = _longest_first(sequences, lengths)
    total = sum(lengths[s] for s in sequences)
    rounds = -(-total // (ranks * max_tokens))
    while (bins := _fill(longest_first, lengths=lengths, bins=rounds * ranks, max_tokens=max_tokens)) is None:
        rounds += 1
    bins.sort(key=lambda one: -sum(lengths[s] for s in one))
    return tuple(tuple(tuple(bins[r * ranks + rank]) for r in range(rounds)) for rank in range(ranks))


def _cut_rows(
    sequences: Sequence[int], *, lengths: Sequence[int], ranks: int, max_tokens: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Sequences of like length together, longest first; the ranks take turns, so those of one round are alike too."""
    cut: list[list[int]] = []
    width = 0
    for sequence in _longest_first(sequences, lengths):
        if not cut or (len(cut[-1]) + 1) * width > max_tokens:
            cut.append([])
            width = lengths[sequence]
        cut[-1].append(sequence)
    rounds = -(-len(cut) // ranks)
    cut += [[] for _ in range(rounds * ranks - len(cut))]
    return tuple(tuple(tuple(cut[r * ranks + rank]) for r in range(rounds)) for rank in range(ranks))


def _longest_first(sequences: Sequence[int], lengths: Sequence[int]) -> list[int]:
    return sorted(sequences, key=lambda s: (-lengths[s], s))


def _fill(
    longest_first: Sequence[int], *, lengths: Sequence[int], bins: int, max_tokens: int
) -> list[list[int]] | None:
    """Longest processing time first into the least loaded bin (Graham 1969); None when a bin exceeds the budget.

    A sequence over the budget may fill a bin alone: the longest sequences come first and find empty bins.
    """
    filled: list[list[int]] = [[] for _ in range(bins)]
    loads = [(0, index) for index in range(bins)]
    for sequence in longest_first:
        if not loads:
            return None
        load, index = loads[0]
        if load and load + lengths[sequence] > max_tokens:
            return None
        filled[index].append(sequence)
        heapq.heapreplace(loads, (load + lengths[sequence], index))
    return filled
