"""A version's way out of the device: gathering, packing and digesting, to pageable and to page-locked memory."""

from collections.abc import Iterator
from functools import partial
from unittest import mock

import torch

from benchmarks.gpu_parts.context import Context, Figure
from benchmarks.gpu_parts.learner import configuration, policy_of
from services.learner.distributed.ranks import join_ranks
from services.learner.snapshot import host_buffers
from services.learner.snapshot.pack import SnapshotPacker
from sluice.accelerator import host_memory
from sluice.policy_version import PolicyVersion

ROUNDS = 4
"""Versions a way; the first two make the buffers."""


def run(context: Context) -> Iterator[Figure]:
    """Milliseconds of each phase, and bytes a second over the rate of page-locked copies."""
    ranks = join_ranks()
    config = configuration(context)
    policy = policy_of(context, ranks, config)
    pageable = torch.device("cpu")
    digests = set()
    for name, where in (("page-locked", ranks.device), ("pageable", pageable)):
        with mock.patch.object(host_buffers, "host_memory", partial(_made_for, where)):
            packer = SnapshotPacker(policy=policy, config=config, ranks=ranks)
            for number in range(ROUNDS):
                snapshot = packer.gather(PolicyVersion(lineage="a", number=number))
        assert snapshot is not None
        digests.add(snapshot.manifest.digest)
        phases = packer.phases_ms
        for phase, took in phases.items():
            yield Figure(what=f"{name}: {phase}", value=took, unit="ms")
        rate = 1e3 * snapshot.manifest.total_bytes / sum(phases.values())
        yield context.compared(f"{name}: all", rate / 1e9, "GB/s", ceiling="to_host", rate=rate)
    assert len(digests) == 1, "the ways differ in their bytes"


def _made_for(where: torch.device, size_bytes: int, *, device: torch.device) -> torch.Tensor:
    """accelerator.host_memory for another device than the one that asks."""
    return host_memory(size_bytes, device=where)
