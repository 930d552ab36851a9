"""How sequences that share a group's prompt are spread over ranks and micro-batches. Pure and deterministic.

A micro-batch computes each prompt once, however many of the group's samples it holds. So a group stays together where it
fits, and is cut into pieces where the budget or idle ranks ask for it; each piece has the prompt again.

Letters: S sequences of a mini-batch, R ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.learner.batches.bins import fill

MIN_SAVING = 8 / 7
"""Tokens without sharing over tokens with sharing from which prompts are shared. Chosen, not
measured: completions attend through a mask, with which a CPU's kernels also compute the pairs of tokens that it hides."""

_CUTS = (1, 2, 4, 8)
"""Pieces of a group that are tried: more than one where whole groups would leave ranks idle."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """Samples of one group that stay together."""

    group: int
    sequences: tuple[int, ...]
    tokens: int
    """Tokens that are computed: the prompt, and the samples' own."""


def share_prompts(
    groups: Sequence[Sequence[int]],
    *,
    lengths: Sequence[int],
    prompts: Sequence[int],
    ranks: int,
    max_tokens: int,
) -> tuple[tuple[tuple[tuple[int, ...], ...], ...], int] | None:
    """[R][micro-batches] of sequences, and the tokens that are saved; None where sharing saves too little.

    groups: the sequences of each group that are in the loss. lengths, prompts: of every sequence of the batch, its input
    tokens and its prompt's tokens. In a micro-batch the longest prompt comes first, and in a group the longest sequence.
    Of a few ways to cut groups, the one whose slowest ranks compute the fewest tokens.
    """
    groups = [group for group in groups if group]
    own = {s: lengths[s] - prompts[s] for group in groups for s in group}
    plain, total = sum(lengths[s] for s in own), sum(own.values()) + sum(prompts[group[0]] for group in groups)
    if plain <= MIN_SAVING * total:  # too little even with whole groups
        return None
    plans = [
        _rounds(
            _pieces(groups, own=own, prompts=prompts, max_tokens=max_tokens, fewest=fewest),
            ranks=ranks,
            max_tokens=max_tokens,
        )
        for fewest in _CUTS
    ]
    best = min(plans, key=_slowest)
    computed = sum(_tokens(one, own, prompts) for side_by_side in best for one in side_by_side)
    if plain <= MIN_SAVING * computed:
        return None
    micro_batches = tuple(tuple(_in_order(one[rank], own, prompts) for one in best) for rank in range(ranks))
    return micro_batches, plain - computed


def _tokens(pieces: Sequence[Piece], own: Mapping[int, int], prompts: Sequence[int]) -> int:
    """Tokens that a micro-batch computes: pieces of one group share the prompt."""
    once = {piece.group: prompts[piece.sequences[0]] for piece in pieces}
    return sum(once.values()) + sum(own[s] for piece in pieces for s in piece.sequences)


def _in_order(pieces: Sequence[Piece], own: Mapping[int, int], prompts: Sequence[int]) -> tuple[int, ...]:
    """The sequences of a micro-batch in the order of `pack`."""
    members = [(piece.group, s) for piece in pieces for s in piece.sequences]
    members.sort(key=lambda member: (-prompts[member[1]], member[0], -own[member[1]], member[1]))
    return tuple(s for _, s in members)


def _pieces(
    groups: Sequence[Sequence[int]], *, own: Mapping[int, int], prompts: Sequence[int], max_tokens: int, fewest: int
) -> list[Piece]:
    """Each group in as few pieces of like size as keep the budget, but in `fewest` at least; one sample alone may pass it."""
    pieces: list[Piece] = []
    for index, group in enumerate(groups):
        longest_first = sorted(group, key=lambda s: (-own[s], s))
        prompt = prompts[group[0]]
        room = max(0, max_tokens - prompt)
        count = min(len(group), max(fewest, -(-sum(own[s] for s in group) // max(1, room))))
        while (parts := fill(longest_first, sizes=own, bins=count, most=room)) is None:
            count += 1
        pieces += [
            Piece(group=index, sequences=tuple(part), tokens=prompt + sum(own[s] for s in part))
            for part in parts
            if part
        ]
    return pieces


def _rounds(pieces: Sequence[Piece], *, ranks: int, max_tokens: int) -> list[list[list[Piece]]]:
    """[micro-batches][R] of pieces: the fewest micro-batches a rank within the budget, those of like size side by side."""
    sizes = {index: piece.tokens for index, piece in enumerate(pieces)}
    largest_first = sorted(sizes, key=lambda index: (-sizes[index], index))
    rounds = -(-sum(sizes.values()) // (ranks * max_tokens))
    while (bins := fill(largest_first, sizes=sizes, bins=rounds * ranks, most=max_tokens)) is None:
        rounds += 1
    bins.sort(key=lambda one: -sum(sizes[index] for index in one))
    filled = [[pieces[index] for index in one] for one in bins]
    return [filled[first : first + ranks] for first in range(0, len(filled), ranks)]


def _slowest(rounds: Sequence[Sequence[Sequence[Piece]]]) -> tuple[int, int]:
    """Tokens of the slowest rank of each micro-batch together, then the number of micro-batches."""
    slowest = [max(sum(piece.tokens for piece in one) for one in side_by_side) for side_by_side in rounds]
    return sum(slowest), len(slowest)
