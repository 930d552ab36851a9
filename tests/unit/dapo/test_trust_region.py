"""Masks by probability: DPPO (arXiv:2602.04879) and IPO, by hand and against autograd of the plain objective."""

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sluice.dapo.loss import TokenLoss
from sluice.dapo.trust_region import dppo_token_loss, ipo_token_loss

Kind = Literal["tv", "kl", "ipo"]
LOW, HIGH = 0.1, 0.2

tokens = st.lists(st.tuples(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.floats(-3, 3)), min_size=1, max_size=12)
"""(probability under the learner, under the rollout, advantage) a token."""


def _loss(
    kind: Kind,
    drawn: list[tuple[float, float, float]],
    *,
    c: float | None = None,
    low: float = LOW,
    high: float = HIGH,
) -> tuple[TokenLoss, Tensor]:
    """The loss, and its gradient with respect to the learner's logprobs."""
    learner, rollout, advantages = (torch.tensor(values) for values in zip(*drawn, strict=True))
    given: dict[str, Any] = {"rollout_logprobs": rollout.log(), "advantages": advantages}
    given |= {"clip_ratio_low": low, "clip_ratio_high": high, "clip_ratio_c": c}
    logprobs = learner.log().requires_grad_()
    if kind == "ipo":
        out = ipo_token_loss(learner_logprobs=logprobs, **given)
    else:
        out = dppo_token_loss(learner_logprobs=logprobs, divergence=kind, **given)
    return out, torch.autograd.grad(out.loss.sum(), logprobs)[0]


@pytest.mark.parametrize(
    ("kind", "learner", "rollout", "advantage", "weight", "flag"),
    [
        ("tv", 0.03, 0.01, 1.0, 3.0, None),  # a rare token may triple: DAPO's clip stops it at 1.28
        ("tv", 0.75, 0.5, 1.0, 0.0, "clipped_high"),  # .25 > .2, though the ratio is but 1.5
        ("tv", 0.75, 0.5, -1.0, 1.5, None),  # leads back
        ("tv", 0.45, 0.6, -1.0, 0.0, "clipped_low"),  # .15 > .1
        ("tv", 0.3, 0.6, 1.0, 0.5, None),
        ("kl", 0.75, 0.5, 1.0, 1.5, None),  # .5 ln(2/3) + .5 ln 2 = .144 <= .2
        ("kl", 0.9, 0.5, 1.0, 0.0, "clipped_high"),  # .5 ln(5/9) + .5 ln 5 = .511
        ("kl", 0.9, 0.5, -1.0, 1.8, None),
        ("kl", 0.25, 0.5, -1.0, 0.0, "clipped_low"),  # .144 > .1
        ("ipo", 0.75, 0.5, -1.0, 0.0, "clipped_low"),  # whatever the sign
        ("ipo", 0.45, 0.6, 1.0, 0.0, "clipped_high"),
        ("ipo", 0.65, 0.5, 1.0, 1.3, None),
    ],
)
def test_a_token_is_weighed_by_its_ratio_inside_and_left_out_outside(
    kind: Kind, learner: float, rollout: float, advantage: float, weight: float, flag: str | None
) -> None:
    out, gradient = _loss(kind, [(learner, rollout, advantage)])
    assert out.loss.item() == pytest.approx(-advantage * weight, rel=1e-5)
    assert gradient.item() == pytest.approx(-advantage * weight, rel=1e-5)
    assert out.ratio.item() == pytest.approx(learner / rollout, rel=1e-5)
    flags = {name: getattr(out, name).item() for name in ("clipped_high", "clipped_low", "clipped_dual")}
    assert [name for name, active in flags.items() if active] == ([flag] if flag else [])


def test_a_larger_ratio_than_c_weighs_c_and_keeps_its_gradient() -> None:
    out, gradient = _loss("tv", [(0.1, 0.005, 1.0), (0.1, 0.005, -1.0)], c=10.0)
    assert out.loss.tolist() == pytest.approx([-10.0, 10.0])
    assert gradient.tolist() == pytest.approx([-10.0, 10.0])
    assert out.clipped_dual.tolist() == [True, True]
    assert out.ratio.tolist() == pytest.approx([20.0, 20.0], rel=1e-5)


@given(st.sampled_from(["tv", "kl", "ipo"]), tokens)
def test_the_gradient_is_that_of_the_plain_objective_with_the_mask_as_a_constant(
    kind: Kind, drawn: list[tuple[float, float, float]]
) -> None:
    out, gradient = _loss(kind, drawn)
    p, m, a = (torch.tensor(values, dtype=torch.float64) for values in zip(*drawn, strict=True))
    logprobs = p.log().requires_grad_()
    distance = (p - m).abs() if kind != "kl" else m * (m / p).log() + (1 - m) * ((1 - m) / (1 - p)).log()
    up, down = (p > m) & (distance > HIGH), (p < m) & (distance > LOW)
    outside = up | down if kind == "ipo" else torch.where(a > 0, up, down)
    if (((distance - HIGH).abs() < 1e-5) | ((distance - LOW).abs() < 1e-5)).any():
        return  # float32 may round to the other side
    plain = -((~outside) * a * (logprobs - m.log()).exp())
    torch.testing.assert_close(out.loss, plain.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, torch.autograd.grad(plain.sum(), logprobs)[0].float(), rtol=1e-4, atol=1e-5)


def test_certain_and_impossible_tokens_have_finite_losses() -> None:
    for kind in ("tv", "kl"):
        out = dppo_token_loss(
            learner_logprobs=torch.tensor([0.0, -200.0, 0.0, -1e-9], requires_grad=True),
            rollout_logprobs=torch.tensor([0.0, 0.0, -200.0, -1e-9]),
            advantages=torch.tensor([1.0, -1.0, 1.0, -1.0]),
            divergence=kind,
            clip_ratio_low=LOW,
            clip_ratio_high=HIGH,
            clip_ratio_c=None,
        )
        assert torch.isfinite(out.loss).all()
        assert (out.clipped_high | out.clipped_low).tolist() == [False, True, True, False]


def test_uneven_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="one shape"):
        ipo_token_loss(
            learner_logprobs=torch.zeros(2),
            rollout_logprobs=torch.zeros(2),
            advantages=torch.zeros(1),
            clip_ratio_low=LOW,
            clip_ratio_high=HIGH,
            clip_ratio_c=None,
        )


@given(tokens)
def test_within_wide_bounds_all_three_are_the_plain_policy_gradient(drawn: list[tuple[float, float, float]]) -> None:
    expected = [-a * p / m for p, m, a in drawn]
    for kind in ("tv", "kl", "ipo"):
        _, gradient = _loss(kind, drawn, low=math.inf, high=math.inf)
        assert gradient.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
