"""What a rank's environment needs before torch is imported, and how many CPU threads it computes with."""

import os

from sluice.config.schema import Config

ALLOCATOR = "PYTORCH_ALLOC_CONF"
_FORMER_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"


def prepare_allocator() -> None:
    """Has torch's CUDA allocator grow its segments: micro-batches differ in length, and blocks of fixed size would be left in
    pieces that no later tensor fits. What the user has set stays. A CPU has no such allocator."""
    if ALLOCATOR not in os.environ and _FORMER_ALLOCATOR not in os.environ:
        os.environ[ALLOCATOR] = "expandable_segments:True"


def cpu_threads(config: Config, *, on_cuda: bool) -> int:
    """`learner.threads`, or its default: this rank's share of the cores where AdamW works on shards in host memory,
    which is work of the CPU; otherwise one thread.
    """
    learner = config.learner
    if learner.threads is not None:
        return learner.threads
    if not (on_cuda and learner.cpu_offload):
        return 1
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
