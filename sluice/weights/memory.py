"""numpy's host memory as torch's, without a copy."""

import ctypes

import numpy as np
import torch


def as_tensor(data: np.ndarray) -> torch.Tensor:
    """uint8[n] host memory as a tensor over the same bytes, which must outlive the tensor. A sealed snapshot is read-only
    to numpy; torch knows no read-only tensors, so nobody may write to this tensor."""
    assert data.dtype == np.uint8
    assert data.flags.c_contiguous
    if data.flags.writeable:
        return torch.from_numpy(data)
    alias = (ctypes.c_uint8 * data.nbytes).from_address(data.ctypes.data)
    return torch.frombuffer(alias, dtype=torch.uint8)
