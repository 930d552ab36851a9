"""A received buffer as named torch tensors, without copying."""

from collections.abc import Iterator

import numpy as np
import torch

from sluice.weights.backends import as_tensor
from sluice.weights.manifest import Manifest

_TORCH_DTYPE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def named_tensors(manifest: Manifest, buffer: np.ndarray) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor's Hugging Face name and a host view of its bytes in `buffer`, uint8[total_bytes]; read only."""
    packed = as_tensor(buffer)
    for spec in manifest.tensors:
        raw = packed[spec.offset_bytes : spec.offset_bytes + spec.size_bytes]
        yield spec.name, raw.view(_TORCH_DTYPE[spec.dtype]).view(spec.shape)


def as_bytes(tensor: torch.Tensor) -> np.ndarray:
    """uint8[n] host memory of a tensor of any dtype."""
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()
