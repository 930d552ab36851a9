"""Adapters merged into the base model's weights: the one arithmetic that learner and rollouts share.

W + (B A) * scale in float32 and in PEFT's order, then converted once. Each end merges on its own device, so the same
adapters give the same bits on machines of one kind.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sluice.weights import staging
from sluice.weights.adapters import adapters_among
from sluice.weights.manifest import Manifest, plan
from sluice.weights.snapshot import Packer, Snapshot
from sluice.weights.tensors import as_bytes, named_tensors


def merge(weight: Tensor, a: Tensor, b: Tensor, *, scale: float) -> Tensor:
    """[out, in], [rank, in] and [out, rank] of any float type -> float32[out, in]."""
    return (b.float() @ a.float()).mul_(scale).add_(weight)


def map_tensors(folder: Path, *, only: Collection[str] | None = None) -> dict[str, Tensor]:
    """The tensors of a model folder (all tensors, or those in `only`), as stored; pages of the files are read when used."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys() if only is None or name in only}  # noqa: SIM118
    return found


@torch.no_grad()
def merged(manifest: Manifest, buffer: np.ndarray, *, base: Mapping[str, Tensor], scale: float, dtype: str) -> Snapshot:
    """`base` with a snapshot's adapters merged in, under the snapshot's version.

    A tensor without an adapter is only converted; an adapter whose weight is not in `base` is left out.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    received = dict(named_tensors(manifest, buffer))
    adapters = adapters_among(received)
    named = [(name, dtype, tuple(weight.shape)) for name, weight in base.items()]
    layout = plan(named, bucket_bytes=manifest.bucket_bytes)
    packer = Packer(layout, staging.new(layout.total_bytes))
    for name, weight in base.items():
        if (adapter := adapters.get(name)) is not None:
            a, b = received[adapter.a].to(device), received[adapter.b].to(device)
            weight = merge(weight.to(device), a, b, scale=scale)
        packer.put(name, as_bytes(weight.to(getattr(torch, dtype))))
    return packer.seal(manifest.version)
