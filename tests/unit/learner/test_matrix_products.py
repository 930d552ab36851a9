"""Products whose sums stay float32, and attention as a torch without `enable_gqa` has it, with CPU twins of CUDA's parts."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from services.learner.policy import attention, matrix_products
from services.learner.policy.head import Head
from services.learner.policy.layout import Layout, SharedLayout

CPU = torch.device("cpu")
LENGTHS = np.array([7, 3, 1, 5])


def _halves(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).bfloat16()


def _chosen(logprobs: Tensor, where: slice) -> Tensor:
    return (logprobs * torch.linspace(-2, 2, 40)[where]).sum()


def test_the_head_says_the_same_with_products_that_are_not_rounded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(temperature=1.0, chunk_tokens=16, float32=False)
    hidden, weight = _halves(40, 32).requires_grad_(), _halves(50, 32).requires_grad_()
    targets = torch.arange(40) % 50

    def found() -> tuple[Tensor, ...]:
        loss, logprobs, entropies = head.loss(hidden, weight, targets, _chosen)
        return logprobs, entropies, *torch.autograd.grad(loss, (hidden, weight))

    assert matrix_products.fused_product(CPU, torch.bfloat16) is None
    rounded = found()
    monkeypatch.setattr(matrix_products, "fused_product", lambda device, dtype: matrix_products.in_float32)
    fused = found()
    exact_logits = hidden.detach().float() @ weight.detach().float().T
    exact = torch.log_softmax(exact_logits, -1).gather(-1, targets[:, None])[:, 0]
    torch.testing.assert_close(fused[0], exact, atol=1e-5, rtol=1e-5)
    assert (rounded[0] - exact).abs().max() > 10 * (fused[0] - exact).abs().max()
    for ours, theirs in zip(fused, rounded, strict=True):
        assert (ours.float() - theirs.float()).norm() < 0.02 * theirs.float().norm()


def test_a_product_is_used_only_where_it_sums_in_float32_and_adds_in_place() -> None:
    def rounded(left: Tensor, right: Tensor, *, add_to: Tensor | None = None) -> Tensor:
        made = (left @ right).float()
        return made if add_to is None else add_to.add_(made)

    def elsewhere(left: Tensor, right: Tensor, *, add_to: Tensor | None = None) -> Tensor:
        return (
            matrix_products.in_float32(left, right)
            if add_to is None
            else add_to + matrix_products.in_float32(left, right)
        )

    def absent(left: Tensor, right: Tensor, *, add_to: Tensor | None = None) -> Tensor:
        raise TypeError("mm() got an unexpected keyword argument 'out_dtype'")

    for product, right in ((matrix_products.in_float32, True), (rounded, False), (elsewhere, False), (absent, False)):
        assert matrix_products._is_right(product, CPU, torch.bfloat16) is right
    # torch has it on CUDA alone, and a device without it keeps the old way.
    assert not matrix_products._is_right(matrix_products._with_out_dtype, CPU, torch.bfloat16)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("window", [None, 3])
def test_flash_attention_gets_what_its_torch_knows_and_the_bounds_of_every_sequence(
    monkeypatch: pytest.MonkeyPatch, told: bool, shared: bool, window: int | None
) -> None:
    asked: list[dict[str, Any]] = []

    def varlen(
        q: Tensor, k: Tensor, v: Tensor, from_q: Tensor, from_k: Tensor, most_q: int, most_k: int, **others: Any
    ) -> Tensor:
        asked.append(others)
        assert (from_q.diff().max(), from_k.diff().max()) == (most_q, most_k)
        seen = None if others["window_size"][0] < 0 else others["window_size"][0] + 1
        parts = []
        for place in range(len(from_q) - 1):
            ours, theirs = (slice(*bounds[place : place + 2].tolist()) for bounds in (from_q, from_k))
            states = (q[ours], k[theirs], v[theirs])
            one = attention._plain(*(s.transpose(0, 1)[None] for s in states), scaling=others["scale"], window=seen)
            parts.append(one[0].transpose(0, 1))
        return torch.cat(parts)

    monkeypatch.setattr(attention, "varlen_attn", varlen)
    monkeypatch.setattr(attention, "_ASKS_FOR_GQA", told)
    layout = SharedLayout(LENGTHS[:2], [LENGTHS[2:3], LENGTHS[3:]], CPU) if shared else Layout(LENGTHS, CPU)
    query, key, value = (torch.randn(1, heads, LENGTHS.sum(), 8) for heads in (4, 2, 2))
    expected = attention.packed_attention(
        torch.nn.Identity(), query, key, value, None, sliding_window=window, layout=layout
    )[0]
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    torch.testing.assert_close(attention._flash(layout, q, k, v, scaling=None, window=window)[None], expected)
    (others,) = asked
    assert others.get("enable_gqa", "not told") == (True if told else "not told")
