"""The policy's weights as one immutable packed snapshot per version.

All ranks gather tensor by tensor in one fixed order; rank 0 packs. Nobody sends from here: the gather is over before
the first byte leaves, so a slow receiver can never stand between two collectives of the ranks.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from services.learner.forward import Policy
from services.learner.ranks import Ranks
from sluice.config.schema import Config
from sluice.weights.manifest import Layout, PolicyVersion, plan
from sluice.weights.snapshot import Packer, Snapshot


class Publisher:
    """Gathers one policy. Collective: every rank makes one, and calls `gather` together."""

    def __init__(self, *, policy: Policy, config: Config, ranks: Ranks) -> None:
        """Raises AssertionError unless all ranks have the same tensors, which is checked before the first gather."""
        # Deduplicated: a tied head appears once, under the embedding's name.
        self._parameters = dict(sorted(policy.causal_lm.named_parameters()))
        self._dtype: torch.dtype = getattr(torch, config.model.dtype)
        self._ranks = ranks
        named = [(name, config.model.dtype, tuple(p.shape)) for name, p in self._parameters.items()]
        self.layout: Layout = plan(named, bucket_bytes=config.weights.bucket_bytes)
        (leaders,) = ranks.share_texts([self.layout.fingerprint])
        assert leaders == self.layout.fingerprint, f"rank {ranks.rank}: other tensors than rank 0"

    @torch.no_grad()
    def gather(self, version: PolicyVersion) -> Snapshot | None:
        """The snapshot on rank 0, None on the others."""
        packer = Packer(self.layout) if self._ranks.leads else None
        for name, parameter in self._parameters.items():
            whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
            if packer is not None:
                packer.put(name, _bytes(whole.to(self._dtype)))
        return packer.seal(version) if packer is not None else None


def renamed(snapshot: Snapshot, version: PolicyVersion) -> Snapshot:
    """The same bytes under another version; the digest does not cover the version."""
    return Snapshot(manifest=dataclasses.replace(snapshot.manifest, version=version), buffer=snapshot.buffer)


def _bytes(tensor: Tensor) -> np.ndarray:
    """uint8[n] host memory of a tensor of any dtype."""
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
