"""The fused head against the plain one: log-softmax over all logits at once, and autograd."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from services.learner.policy.head import Head
from sluice.dapo.loss import dapo_token_loss

M, V, D = 50, 300, 16
ADVANTAGES = torch.linspace(-2, 2, M)
CLIPS: dict[str, Any] = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28, "clip_ratio_c": 3.0}


def _inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(M, D, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    return hidden, weight, torch.randint(0, V, (M,), generator=generator)


def _loss(logprobs: Tensor, where: slice) -> Tensor:
    """DAPO's loss of tokens that the rollout found a little more likely."""
    return dapo_token_loss(
        learner_logprobs=logprobs,
        proximal_logprobs=logprobs.detach() + torch.linspace(-1, 1, M)[where],
        advantages=ADVANTAGES[where],
        **CLIPS,
    ).loss.sum()


def _naive(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = torch.log_softmax(hidden.float() @ weight.float().T / temperature, -1)
    chosen = logprobs.gather(-1, targets[:, None])[:, 0]
    return _loss(chosen, slice(0, M)), chosen, -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_tokens", [1, 7, M, 10_000])
def test_loss_scores_and_gradients_are_those_of_the_plain_head(chunk_tokens: int, temperature: float) -> None:
    hidden, weight, targets = _inputs()
    head = Head(temperature=temperature, chunk_tokens=chunk_tokens, float32=False)
    loss, logprobs, entropies = head.loss(hidden, weight, targets, _loss)
    ours = torch.autograd.grad(loss * 3, (hidden, weight))
    expected, naive_logprobs, naive_entropies = _naive(hidden, weight, targets, temperature)
    theirs = torch.autograd.grad(expected * 3, (hidden, weight))
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logprobs, naive_logprobs.detach())
    torch.testing.assert_close(entropies, naive_entropies.detach())
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5)
    assert not logprobs.requires_grad
    assert not entropies.requires_grad


def test_scores_without_a_loss_are_the_same_numbers() -> None:
    hidden, weight, targets = _inputs()
    head = Head(temperature=0.7, chunk_tokens=8, float32=False)
    _, *with_loss = head.loss(hidden, weight, targets, _loss)
    for scored, seen in zip(head.score(hidden, weight, targets), with_loss, strict=True):
        assert torch.equal(scored, seen)
        assert not scored.requires_grad


def test_a_float32_head_over_bfloat16_weights_is_exact_where_the_plain_one_rounds() -> None:
    hidden, weight, targets = _inputs(torch.bfloat16)
    _, exact, _ = _naive(hidden, weight, targets, 1.0)
    found = {
        float32: Head(temperature=1.0, chunk_tokens=16, float32=float32).score(hidden, weight, targets)[0]
        for float32 in (True, False)
    }
    torch.testing.assert_close(found[True], exact.detach())
    assert (found[False] - exact).abs().max() > 1e-3


@pytest.mark.parametrize("float32", [True, False])
def test_gradients_of_bfloat16_weights_come_back_in_bfloat16(float32: bool) -> None:
    hidden, weight, targets = _inputs(torch.bfloat16)
    loss, _, _ = Head(temperature=1.0, chunk_tokens=16, float32=float32).loss(hidden, weight, targets, _loss)
    ours = torch.autograd.grad(loss, (hidden, weight))
    theirs = torch.autograd.grad(_naive(hidden, weight, targets, 1.0)[0], (hidden, weight))
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == torch.bfloat16
        assert (our - their).float().norm() < 0.03 * their.float().norm()


def test_a_frozen_head_gets_no_gradient_and_the_trunk_still_does() -> None:
    hidden, weight, targets = _inputs()
    loss, _, _ = Head(temperature=1.0, chunk_tokens=16, float32=False).loss(hidden, weight.detach(), targets, _loss)
    (ours,) = torch.autograd.grad(loss, hidden)
    (theirs,) = torch.autograd.grad(_naive(hidden, weight, targets, 1.0)[0], hidden)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_targets_at_all_give_a_loss_of_zero_and_zero_gradients() -> None:
    hidden, weight, targets = _inputs()
    head = Head(temperature=1.0, chunk_tokens=16, float32=False)
    loss, logprobs, entropies = head.loss(hidden[:0], weight, targets[:0], _loss)
    loss.backward()
    assert (loss.item(), len(logprobs), len(entropies)) == (0.0, 0, 0)
    assert weight.grad is not None
    assert not weight.grad.any()


def test_nothing_larger_than_one_chunk_of_logits_ever_exists_forward_or_backward() -> None:
    hidden, weight, targets = _inputs()
    with _largest_made() as plain:
        _naive(hidden, weight, targets, 1.0)[0].backward()
    with _largest_made() as fused:
        Head(temperature=1.0, chunk_tokens=16, float32=False).loss(hidden, weight, targets, _loss)[0].backward()
    assert plain.elements == M * V
    assert fused.elements == max(16 * V, V * D)


class _Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns, those of autograd included."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, tuple | list) else (out,):
            if isinstance(made, Tensor):
                self.elements = max(self.elements, made.numel())
        return out


@contextmanager
def _largest_made() -> Iterator[_Largest]:
    with _Largest() as mode:
        yield mode
