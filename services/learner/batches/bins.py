"""Longest processing time first (Graham 1969): the largest things first, each into the bin with the least in it."""

import heapq
from collections.abc import Mapping, Sequence


def fill(
    largest_first: Sequence[int], *, sizes: Sequence[int] | Mapping[int, int], bins: int, most: int
) -> list[list[int]] | None:
    """The bins' contents; None when a bin would exceed `most`.

    A thing above `most` may fill a bin alone: the largest come first and find empty bins.
    """
    filled: list[list[int]] = [[] for _ in range(bins)]
    loads = [(0, index) for index in range(bins)]
    for thing in largest_first:
        if not loads:
            return None
        load, index = loads[0]
        if load and load + sizes[thing] > most:
            return None
        filled[index].append(thing)
        heapq.heapreplace(loads, (load + sizes[thing], index))
    return filled
