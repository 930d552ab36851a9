"""SAPO's gate (arXiv:2511.20347)."""

import math

import pytest
import torch

from sluice.dapo.soft_gate import sapo_token_loss


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        # tau 1: f(1) = 2, f'(1) = 1; the slope in log pi is -A f'(r) r
        (1.0, 1.0, -2.0, -1.0),
        # s = sigmoid(1) = .7310586, f = 4 s, f' = 4 s (1 - s) = .7864477
        (2.0, 1.0, -2.9242343, -1.5728955),
        # tau 2: s = sigmoid(2) = .8807971, f = 2 s, f' = 4 s (1 - s) = .4199743
        (2.0, -1.0, 1.7615942, 0.8399487),
        (1.0, -1.0, 1.0, 1.0),
        (3.0, 0.0, 0.0, 0.0),
    ],
)
def test_the_gate_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    learner = torch.tensor([-1.0]).requires_grad_()
    out = sapo_token_loss(
        learner_logprobs=learner,
        proximal_logprobs=learner.detach() - math.log(ratio),
        advantages=torch.tensor([advantage]),
        tau_pos=1.0,
        tau_neg=2.0,
    )
    (gradient,) = torch.autograd.grad(out.loss.sum(), learner)
    assert out.loss.item() == pytest.approx(loss, rel=1e-5)
    assert gradient.item() == pytest.approx(slope, rel=1e-5)
    assert not (out.clipped_high | out.clipped_low | out.clipped_dual).any()


def test_a_token_far_away_has_no_gradient_and_a_finite_loss() -> None:
    learner = torch.tensor([0.0, -99.0]).requires_grad_()
    out = sapo_token_loss(
        learner_logprobs=learner,
        proximal_logprobs=torch.tensor([-99.0, 0.0]),
        advantages=torch.tensor([1.0, -1.0]),
        tau_pos=1.0,
        tau_neg=1.05,
    )
    (gradient,) = torch.autograd.grad(out.loss.sum(), learner)
    assert torch.isfinite(out.loss).all()
    assert gradient.tolist() == [0.0, 0.0]
