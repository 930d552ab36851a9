"""The learning rate by hand, and what weight decay is applied to."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.learner.policy.forward import Policy
from services.learner.policy.head import Head
from services.learner.policy.optimizer import learning_rate, make_optimizer
from tests.unit.learner.learner_cases import make_config, write_tiny_model


def _rates(kind: str, *, steps: int = 10, warmup_steps: int = 2, min_ratio: float = 0.0) -> list[float]:
    return [
        learning_rate(step, peak=1.0, warmup_steps=warmup_steps, total_steps=steps, kind=kind, min_ratio=min_ratio)  # type: ignore[arg-type]
        for step in range(steps + 2)
    ]


def test_a_constant_rate_follows_a_linear_warm_up() -> None:
    assert _rates("constant") == [0.5] + [1.0] * 11


def test_a_linear_decay_falls_evenly_to_its_floor_and_stays_there() -> None:
    assert _rates("linear") == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0.0, 0.0])
    assert _rates("linear", min_ratio=0.2)[-2:] == pytest.approx([0.2, 0.2])


def test_a_cosine_decay_is_halfway_in_the_middle() -> None:
    rates = _rates("cosine", min_ratio=0.1)
    assert rates[2] == 1.0
    assert rates[6] == pytest.approx(0.55)
    assert rates[-1] == pytest.approx(0.1)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_without_warm_up_the_first_step_is_at_the_peak() -> None:
    assert _rates("linear", warmup_steps=0)[0] == 1.0


def test_only_matrices_decay_and_frozen_weights_are_left_out(tmp_path: Path) -> None:
    causal_lm = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path))
    causal_lm.get_input_embeddings().weight.requires_grad_(False)
    policy = Policy(causal_lm, Head(temperature=1.0, chunk_tokens=8, float32=False))
    optimizer = make_optimizer(policy, make_config(tmp_path, learner={"weight_decay": 0.1}))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in causal_lm.named_parameters():
        if "embed" in name:
            assert id(parameter) not in decay
        else:
            assert decay[id(parameter)] == (0.0 if "norm" in name else 0.1), name
    assert isinstance(optimizer, torch.optim.AdamW)
