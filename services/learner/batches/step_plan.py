"""Which sequences go into which optimizer update, micro-batch and rank. Pure and deterministic.

Every rank computes the same plan from the same lengths, so ranks need not agree on a plan at run time. Nothing needs to be
divisible by anything: a rank with too little work gets empty micro-batches, because FSDP's collectives need equal counts.

Letters: S sequences of a batch, R ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from services.learner.batches.bins import fill
from services.learner.batches.shared_plan import share_prompts


@dataclass(frozen=True, kw_only=True, slots=True)
class MiniBatch:
    """One optimizer update."""

    sequences: tuple[int, ...]
    """Indices into the batch's sequences; whole groups, in batch order."""
    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]
    """[R][M]: micro-batch m of rank r as indices into the batch's sequences, longest first; may be empty."""
    saved_tokens: int = 0
    """Prompt tokens that are not computed again because the samples of a group share them; then a micro-batch has its
    sequences group by group, longest prompt first, and longest first in a group."""


def plan_step(
    *,
    group_sizes: Sequence[int],
    lengths: Sequence[int],
    trained: Sequence[bool],
    groups_per_mini_batch: int,
    ranks: int,
    max_tokens: int,
    rows: bool = False,
    prompts: Sequence[int] | None = None,
) -> tuple[MiniBatch, ...]:
    """Cuts a batch into mini-batches of `groups_per_mini_batch` groups; the last is smaller when groups do not divide.

    lengths, trained: [S], input tokens of each sequence, and whether the sequence is in the loss; a sequence outside the
    loss stays in `sequences` but is in no micro-batch. `max_tokens` is the budget of one micro-batch on one rank. With `rows`
    a micro-batch is padded to its longest sequence, and the padding counts. With `prompts`, [S] tokens of each sequence's
    prompt, a mini-batch computes a group's prompt once a micro-batch where that saves enough.
    """
    starts = [0]
    for size in group_sizes:
        starts.append(starts[-1] + size)
    mini_batches = []
    for first in range(0, len(group_sizes), groups_per_mini_batch):
        last = min(first + groups_per_mini_batch, len(group_sizes))
        sequences = tuple(range(starts[first], starts[last]))
        work = [s for s in sequences if trained[s]]
        shared = None
        if prompts is not None:
            groups = [[s for s in range(starts[g], starts[g + 1]) if trained[s]] for g in range(first, last)]
            shared = share_prompts(groups, lengths=lengths, prompts=prompts, ranks=ranks, max_tokens=max_tokens)
        if shared is None:
            cut = _cut_rows if rows else _spread
            micro_batches = cut(work, lengths=lengths, ranks=ranks, max_tokens=max_tokens)
            mini_batches.append(MiniBatch(sequences=sequences, micro_batches=micro_batches))
        else:
            micro_batches, saved_tokens = shared
            mini_batches.append(MiniBatch(sequences=sequences, micro_batches=micro_batches, saved_tokens=saved_tokens))
    return tuple(mini_batches)


def _spread(
    sequences: Sequence[int], *, lengths: Sequence[int], ranks: int, max_tokens: int
) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The fewest micro-batches a rank within the budget; micro-batches of like size run side by side on the ranks."""
    longest_first = _longest_first(sequences, lengths)
    total = sum(lengths[s] for s in sequences)
    rounds = -(-total // (ranks * max_tokens))
    while (bins := fill(longest_first, sizes=lengths, bins=rounds * ranks, most=max_tokens)) is None:
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
