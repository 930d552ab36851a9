"""The clipped token loss: DAPO eq. 8 with the decoupled clip of eq. 10, the dual clip, and the variants GSPO and CISPO."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sluice.dapo.loss import (
    TokenLoss,
    cispo_token_loss,
    dapo_token_loss,
    gspo_token_loss,
    reinforce_token_loss,
)

LOW, HIGH, DUAL = 0.2, 0.28, 10.0

tokens = st.lists(st.tuples(st.floats(-4, 4), st.floats(-3, 3)), min_size=1, max_size=12)
"""(log-ratio in nats, advantage) a token."""


def _loss(
    log_ratios: list[float], advantages: list[float], clip_ratio_c: float | None = DUAL
) -> tuple[TokenLoss, Tensor]:
    """The loss of tokens sampled at -1 nat, and its gradient with respect to the learner's logprobs."""
    rollout = torch.full((len(log_ratios),), -1.0)
    learner = (rollout + torch.tensor(log_ratios)).requires_grad_()
    out = dapo_token_loss(
        learner_logprobs=learner,
        proximal_logprobs=rollout,
        advantages=torch.tensor(advantages),
        clip_ratio_low=LOW,
        clip_ratio_high=HIGH,
        clip_ratio_c=clip_ratio_c,
    )
    (gradient,) = torch.autograd.grad(out.loss.sum(), learner)
    return out, gradient


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "flag"),
    [
        (1.0, 2.0, -2.0, -2.0, None),
        (1.25, 1.0, -1.25, -1.25, None),  # above 1 + low, within the raised upper bound: clip-higher
        (1.5, 1.0, -1.28, 0.0, "clipped_high"),
        (0.5, 1.0, -0.5, -0.5, None),  # pessimistic: the clip must not flatter a token that became less likely
        (1.5, -1.0, 1.5, 1.5, None),
        (0.5, -1.0, 0.8, 0.0, "clipped_low"),
        (20.0, -1.0, 10.0, 0.0, "clipped_dual"),
        (1.5, 0.0, 0.0, 0.0, None),
    ],
)
def test_eq_8_and_10_by_hand(ratio: float, advantage: float, loss: float, gradient: float, flag: str | None) -> None:
    out, grad = _loss([math.log(ratio)], [advantage])
    assert out.loss.item() == pytest.approx(loss, rel=1e-6)
    assert grad.item() == pytest.approx(gradient, rel=1e-6)
    assert out.ratio.item() == pytest.approx(ratio, rel=1e-6)
    flags = {name: getattr(out, name).item() for name in ("clipped_high", "clipped_low", "clipped_dual")}
    assert [name for name, active in flags.items() if active] == ([flag] if flag else [])


@given(tokens)
def test_the_loss_agrees_with_a_naive_loop(drawn: list[tuple[float, float]]) -> None:
    out, _ = _loss([d for d, _ in drawn], [a for _, a in drawn])
    for (log_ratio, advantage), loss in zip(drawn, out.loss.tolist(), strict=True):
        ratio = math.exp(log_ratio)
        naive = -min(ratio * advantage, min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)
        if advantage < 0:
            naive = min(naive, -DUAL * advantage)
        assert loss == pytest.approx(naive, rel=1e-4, abs=1e-5)


@given(tokens)
def test_the_gradient_is_minus_advantage_times_ratio_or_zero_where_a_clip_is_active(
    drawn: list[tuple[float, float]],
) -> None:
    out, gradient = _loss([d for d, _ in drawn], [a for _, a in drawn])
    clipped = out.clipped_high | out.clipped_low | out.clipped_dual
    advantages = torch.tensor([a for _, a in drawn])
    expected = torch.where(clipped, 0.0, -advantages * out.ratio)
    torch.testing.assert_close(gradient, expected)


@given(tokens)
def test_the_gradient_agrees_with_finite_differences(drawn: list[tuple[float, float]]) -> None:
    def naive(log_ratio: float, advantage: float) -> float:
        ratio = math.exp(log_ratio)
        loss = max(-ratio * advantage, -min(max(ratio, 1 - LOW), 1 + HIGH) * advantage)
        return min(loss, -DUAL * advantage) if advantage < 0 else loss

    kinks = [math.log(1 - LOW), math.log(1 + HIGH), math.log(DUAL)]
    smooth = [(d, a) for d, a in drawn if min(abs(d - kink) for kink in kinks) > 1e-3]
    if not smooth:
        return
    _, gradient = _loss([d for d, _ in smooth], [a for _, a in smooth])
    for (d, a), slope in zip(smooth, gradient.tolist(), strict=True):
        assert slope == pytest.approx((naive(d + 1e-5, a) - naive(d - 1e-5, a)) / 2e-5, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("log_ratio", [99.0, -99.0, 2000.0, -2000.0])
def test_extreme_logprobs_give_finite_losses_and_gradients(log_ratio: float, advantage: float) -> None:
    out, gradient = _loss([log_ratio], [advantage], clip_ratio_c=None)
    assert torch.isfinite(out.loss).all()
    assert torch.isfinite(out.ratio).all()
    assert gradient.item() == 0.0


def test_on_policy_tokens_are_never_clipped_and_their_loss_is_minus_the_advantage() -> None:
    out, gradient = _loss([0.0] * 4, [-2.0, -0.5, 0.5, 2.0])
    assert out.loss.tolist() == gradient.tolist() == [2.0, 0.5, -0.5, -2.0]
    assert not (out.clipped_high | out.clipped_low | out.clipped_dual).any()


def test_without_dual_clip_a_large_ratio_is_unbounded() -> None:
    out, gradient = _loss([math.log(20.0)], [-1.0], clip_ratio_c=None)
    assert out.loss.item() == gradient.item() == pytest.approx(20.0)
    assert not out.clipped_dual.any()


def test_half_precision_logprobs_are_computed_in_float32() -> None:
    half = torch.tensor([-1.0, -2.0], dtype=torch.bfloat16)
    out = dapo_token_loss(
        learner_logprobs=half,
        proximal_logprobs=half,
        advantages=torch.tensor([1.0, -1.0], dtype=torch.float64),
        clip_ratio_low=LOW,
        clip_ratio_high=HIGH,
        clip_ratio_c=DUAL,
    )
    assert out.loss.dtype == out.ratio.dtype == torch.float32
    assert out.loss.tolist() == [-1.0, 1.0]


def test_uneven_shapes_and_a_dual_clip_of_one_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        _loss([0.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="clip_ratio_c"):
        _loss([0.0], [1.0], clip_ratio_c=1.0)


def _gradient(out: TokenLoss, learner: Tensor) -> list[float]:
    return torch.autograd.grad(out.loss.sum(), learner)[0].tolist()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "flag"),
    [
        (1.1, 1.0, -1.1, -1.1, None),
        (1.5, 1.0, -1.28, 0.0, "clipped_high"),
        (0.5, -1.0, 0.8, 0.0, "clipped_low"),
        (20.0, -1.0, 10.0, 0.0, "clipped_dual"),
    ],
)
def test_gspo_gives_every_token_its_sequences_ratio_and_its_own_gradient(
    ratio: float, advantage: float, loss: float, gradient: float, flag: str | None
) -> None:
    learner = torch.tensor([-1.0, -7.0]).requires_grad_()
    out = gspo_token_loss(
        learner_logprobs=learner,
        sequence_log_ratios=torch.full((2,), math.log(ratio)),
        advantages=torch.full((2,), advantage),
        clip_ratio_low=LOW,
        clip_ratio_high=HIGH,
        clip_ratio_c=DUAL,
    )
    assert out.loss.tolist() == pytest.approx([loss] * 2)
    assert _gradient(out, learner) == pytest.approx([gradient] * 2)
    flags = {name: getattr(out, name).all().item() for name in ("clipped_high", "clipped_low", "clipped_dual")}
    assert [name for name, active in flags.items() if active] == ([flag] if flag else [])


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight", "flag"),
    [
        (1.1, 1.0, 1.1, None),
        (1.5, 1.0, 1.28, "clipped_high"),
        (0.5, 1.0, 0.8, None),
        (0.5, -2.0, 0.8, "clipped_low"),
        (20.0, -2.0, 1.28, None),
    ],
)
def test_cispo_keeps_every_tokens_gradient_under_a_clipped_constant_weight(
    ratio: float, advantage: float, weight: float, flag: str | None
) -> None:
    learner = torch.tensor([-1.0]).requires_grad_()
    out = cispo_token_loss(
        learner_logprobs=learner,
        proximal_logprobs=learner.detach() - math.log(ratio),
        advantages=torch.tensor([advantage]),
        clip_ratio_low=LOW,
        clip_ratio_high=HIGH,
    )
    assert out.loss.item() == pytest.approx(advantage * weight)  # -A w log pi, and log pi is -1
    assert _gradient(out, learner) == pytest.approx([-advantage * weight])
    flags = {name: getattr(out, name).item() for name in ("clipped_high", "clipped_low", "clipped_dual")}
    assert [name for name, active in flags.items() if active] == ([flag] if flag else [])


@given(tokens)
def test_gspo_of_sequences_of_one_token_is_dapo(drawn: list[tuple[float, float]]) -> None:
    dapo, dapo_gradient = _loss([d for d, _ in drawn], [a for _, a in drawn])
    learner = (torch.tensor([d for d, _ in drawn]) - 1).requires_grad_()
    gspo = gspo_token_loss(
        learner_logprobs=learner,
        sequence_log_ratios=learner.detach() + 1,
        advantages=torch.tensor([a for _, a in drawn]),
        clip_ratio_low=LOW,
        clip_ratio_high=HIGH,
        clip_ratio_c=DUAL,
    )
    torch.testing.assert_close(gspo.loss, dapo.loss)
    torch.testing.assert_close(torch.tensor(_gradient(gspo, learner)), dapo_gradient)


def test_the_plain_policy_gradient_has_neither_ratio_nor_clip() -> None:
    learner = torch.tensor([-1.0, -3.0]).requires_grad_()
    advantages = torch.tensor([2.0, -0.5])
    out = reinforce_token_loss(
        learner_logprobs=learner, rollout_logprobs=torch.tensor([-2.0, -3.0]), advantages=advantages
    )
    assert out.loss.tolist() == [-2.0, 0.5]
    assert _gradient(out, learner) == [-2.0, 0.5]
    assert out.ratio.tolist() == pytest.approx([math.e, 1.0])
    assert not (out.clipped_high | out.clipped_low | out.clipped_dual).any()
