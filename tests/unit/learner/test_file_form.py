"""What transformers joins or renames is published as transformers' own save_pretrained writes it, bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from services.learner.policy.reduced_model import random_model
from sluice.weights.file_form import find_form
from sluice.weights.further_layers import is_further
from tests.decoder_families import tiny_config


@pytest.mark.parametrize(
    ("family", "of_a_layer"),
    [("qwen3_moe", 24), ("phimoe", 24), ("minimax_m2", 24), ("hy_v3", 24), ("deepseek_v3", 24), ("qwen3", 0)],
)
def test_every_tensor_of_the_files_is_a_view_of_the_model(tmp_path: Path, family: str, of_a_layer: int) -> None:
    causal_lm = random_model(tiny_config(family), seed=1)
    causal_lm.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    named = causal_lm.state_dict()
    form = find_form(causal_lm, named, {name: tuple(tensor.shape) for name, tensor in stored.items()})
    parts = [(name, part) for name, found in form.parts.items() for part in found]
    assert sorted(part.name for _, part in parts) == sorted(stored)
    for name, part in parts:
        assert torch.equal(part.of(named[name]), stored[part.name]), part.name
        if part.expert is not None and part.expert > 1:
            assert torch.equal(part.of(named[name][2:], first=2), stored[part.name]), part.name
    assert sum(part.expert is not None for name, part in parts if ".layers.3." in name) == of_a_layer
    assert (form.surplus, form.twice, form.computed) == ({}, "", "")


def test_layers_that_predict_further_tokens_stand_behind_the_last() -> None:
    names = (
        "model.layers.60.mlp.gate.weight",
        "model.layers.61.eh_proj.weight",
        "lm_head.weight",
        "layers.61.norm.weight",
    )
    assert [is_further(name, layers=61) for name in names] == [False, True, False, True]
