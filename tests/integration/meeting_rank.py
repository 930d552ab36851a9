"""A learner's rank that meets the other ranks and ends: `--module` of services.learner.distributed.node."""

import torch
import torch.distributed as dist

from services.learner.distributed.ending import end_process
from services.learner.distributed.ranks import join_ranks


def main() -> int:
    """Prints the number of the ranks, summed up by all of them."""
    ranks = join_ranks()
    met = torch.ones(1)
    dist.all_reduce(met)
    if ranks.rank == 0:
        print(f"met {int(met)}", flush=True)
    return 0


if __name__ == "__main__":
    end_process(main)
