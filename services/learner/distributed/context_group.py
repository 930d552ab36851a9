"""Context parallelism: neighbouring ranks that compute one micro-batch together, each a slice of its tokens.

Ranks g x size to g x size + size - 1 are context group g. Where work is shared out, a group counts as one rank with `size`
times the room; weights, gradients and checkpoints are shared out over all ranks as without groups. Each token's loss is
computed on one rank alone, so sums over all ranks count every token once.

 who waits                                          for what                         unblocked by
 each rank, twice a layer, forward and backward     the other slices of its group    the last rank's part, a rank's end,
                                                                                     COLLECTIVE_TIMEOUT
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from services.learner.distributed.ranks import COLLECTIVE_TIMEOUT, Ranks
from sluice.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextGroup:
    """This rank's place in its context group, and the group's place among the groups."""

    rank: int
    size: int
    """`learner.context_parallel_size`."""
    data_rank: int
    """The group's number: whose micro-batches this rank computes."""
    data_ranks: int
    """Groups."""
    group: dist.ProcessGroup | None
    """None in a group of one."""

    def add_up(self, values: Tensor) -> Tensor:
        """Sums over the group, in place; every rank of the group gets the sum."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM, group=self.group)
        return values

    def exchange(self, parts: Tensor) -> Tensor:
        """[size, ...]: part i goes to rank i of the group; returns the parts that came, in rank order. With gradient."""
        return _Exchange.apply(parts, self.group)  # pyrefly: ignore[bad-return]


ALONE = ContextGroup(rank=0, size=1, data_rank=0, data_ranks=1, group=None)
"""The group of a process that is the only rank."""


def join_context(ranks: Ranks, *, size: int) -> ContextGroup:
    """Cuts the ranks into groups of neighbours. Collective. Raises ConfigError, on every rank, where they do not divide."""
    if ranks.size % size:
        raise ConfigError(f"learner.context_parallel_size: must divide the learner's {ranks.size} ranks, got {size}")
    group = None
    if size > 1:
        group, _ = dist.new_subgroups(size, timeout=COLLECTIVE_TIMEOUT)
        assert isinstance(group, dist.ProcessGroup), "every rank is in a group"
    data_rank, rank = divmod(ranks.rank, size)
    return ContextGroup(rank=rank, size=size, data_rank=data_rank, data_ranks=ranks.size // size, group=group)


class _Exchange(torch.autograd.Function):
    """All-to-all of equal parts, which is its own transpose. Keeps nothing for the backward pass.

    Not torch's functional collectives: their exchange with a gradient has another name in torch 2.11 than in 2.13.
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(parts, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None]:  # pyrefly: ignore[bad-override]
        return _all_to_all(gradients, ctx.group), None


def _all_to_all(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    parts = parts.contiguous()
    came = torch.empty_like(parts)
    dist.all_to_all_single(came, parts, group=group)
    return came
