"""A pair over NCCL, which cannot end the process that holds it.

The pair has no watchdog and no monitor (sluice/nccl.py), so a pair that fails signals nothing to the process's other
groups. The pair's communicator is non-blocking: only such a communicator can be given up while it is being made. The
pair takes few channels, because each holds a part of the GPU while it waits for its peer. Not run: the tests need two
GPUs.
"""

from datetime import timedelta

import torch
from torch._C._distributed_c10d import Store

from sluice.nccl import JOIN_LIMIT_S, without_watchdog
from sluice.weights.rendezvous import Rendezvous
from sluice.weights.staged_group import StagedGroup

MAX_CHANNELS = 4
"""Thread blocks of a transfer's kernel, of the 132 that an H100 runs at once; chosen: a few fill a network card, and a receiver
that is stuck holds them until its limit. NCCL_MAX_CTAS wins over it."""


def form(store: Store, rendezvous: Rendezvous) -> StagedGroup:
    """Raises TransferError unless the peer joins within JOIN_LIMIT_S, RuntimeError when torch refuses the group."""
    from torch.distributed import ProcessGroupNCCL  # absent from builds without CUDA

    options = ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=rendezvous.timeout_s)
    options.config.blocking = 0
    options.config.max_ctas = MAX_CHANNELS
    with without_watchdog():
        group = ProcessGroupNCCL(store, rendezvous.rank, rendezvous.world_size, options)
    staged = StagedGroup(
        group,
        epoch=rendezvous.epoch,
        rank=rendezvous.rank,
        device=torch.device("cuda", torch.cuda.current_device()),
        limit_s=rendezvous.timeout_s,
    )
    staged.connect(limit_s=JOIN_LIMIT_S)
    return staged
