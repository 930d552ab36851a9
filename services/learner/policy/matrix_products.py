"""Matrix products of half-precision matrices whose result is float32: the head's logits and its weight's gradient.

Where torch and the device have it, the product is written as float32 straight from the sums (`out_dtype`), without being
rounded to half precision first and without a second buffer. Elsewhere it is computed in half precision and then widened, as it
always was. Which way is used is found once a device, by a product whose result is known.

`out_dtype` exists on CUDA alone, where it has not been run; tests put `in_float32` in its place, which computes the same sums.
"""

import functools
from typing import Protocol

import torch
from torch import Tensor


class FusedProduct(Protocol):
    """torch.mm and torch.addmm with `out_dtype=torch.float32`."""

    def __call__(self, left: Tensor, right: Tensor, *, add_to: Tensor | None = None) -> Tensor:
        """left [A, B] @ right [B, C] -> float32[A, C]; with `add_to`, float32[A, C], it is added there in place."""
        ...


def product(left: Tensor, right: Tensor) -> Tensor:
    """left [A, B] @ right [B, C] in one dtype -> float32[A, C]."""
    fused = fused_product(left.device, left.dtype)
    return (left @ right).float() if fused is None else fused(left, right)


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total float32[A, C] += left [A, B] @ right [B, C]."""
    fused = fused_product(left.device, left.dtype)
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    elif fused is None:
        total += left @ right
    else:
        fused(left, right, add_to=total)


@functools.cache
def fused_product(device: torch.device, dtype: torch.dtype) -> FusedProduct | None:
    """The fused product where it is known to work, else None."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    return _with_out_dtype if _is_right(_with_out_dtype, device, dtype) else None  # CUDA only


def in_float32(left: Tensor, right: Tensor, *, add_to: Tensor | None = None) -> Tensor:
    """FusedProduct in plain operations, for any device: the same products, summed in float32."""
    made = left.float() @ right.float()
    return made if add_to is None else add_to.add_(made)


def _with_out_dtype(left: Tensor, right: Tensor, *, add_to: Tensor | None = None) -> Tensor:
    """CUDA only."""
    if add_to is None:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.addmm(add_to, left, right, out_dtype=torch.float32, out=add_to)


def _is_right(fused: FusedProduct, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether sums come out that half precision cannot hold. Small whole numbers, so that the order of sums does not matter."""
    left = torch.arange(1, 65, device=device, dtype=dtype).reshape(8, 8)
    total = torch.ones(8, 8, device=device)
    known = in_float32(left.T, left)
    try:
        made, added = fused(left.T, left), fused(left.T, left, add_to=total)
    except (RuntimeError, TypeError):  # TypeError: a torch without out_dtype
        return False
    return torch.equal(made, known) and torch.equal(added, known + 1) and torch.equal(total, added)
