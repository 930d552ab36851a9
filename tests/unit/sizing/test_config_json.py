"""Parameters from config.json against the models that transformers builds, and what is refused."""

import json
from pathlib import Path

import pytest

from sluice.sizing.config_json import Uncounted, read_shape, shape_of
from tests.unit.sizing.families import TINY, tiny

LLAMA = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "tie_word_embeddings": True,
}


@pytest.mark.parametrize("name", TINY)
def test_parameters_are_those_of_the_real_model(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    model.config.save_pretrained(tmp_path)
    shape = read_shape(tmp_path)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    layers = model.base_model.layers
    assert [layer.parameters for layer in shape.layers] == [
        sum(p.numel() for p in layer.parameters()) for layer in layers
    ]
    linears = {
        (module_name.rpartition(".")[2], module.in_features, module.out_features)
        for module_name, module in layers.named_modules()
        if type(module).__name__ == "Linear"
    }
    counted = {(linear.name, linear.inputs, linear.outputs) for layer in shape.layers for linear in layer.linears}
    assert counted == linears


def test_a_model_worked_out_by_hand() -> None:
    shape = shape_of(LLAMA)
    # q 8x8, k and v 8x4, o 8x8, three of 8x16, two norms of 8
    assert shape.largest_layer == 64 + 32 + 32 + 64 + 3 * 128 + 16
    assert shape.root == 800 + 8
    assert shape.parameters == shape.active_parameters == 592 + 808
    assert shape_of(LLAMA | {"tie_word_embeddings": False}).parameters == 592 + 808 + 800
    assert shape.kv_elements_a_token() == 2 * 1 * 4
    assert shape.kv_elements_a_token(tensor_parallel=2) == 2 * 1 * 4  # one head cannot be cut
    assert shape.adapter_parameters(2, ["q_proj", "mlp.down_proj"]) == 2 * (8 + 8) + 2 * (16 + 8)
    assert shape.adapter_parameters(1, "all-linear") == 16 + 12 + 12 + 16 + 3 * 24


def test_published_sizes() -> None:
    """Qwen2.5-7B and Qwen3-30B-A3B, as their model cards state them: 7.61 B, 30.5 B with 3.3 B active."""
    dense = shape_of(
        LLAMA
        | {"model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944}
        | {"num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False}
    )
    assert dense.parameters == 7_615_616_512
    experts = shape_of(
        LLAMA
        | {"model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144}
        | {"num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "tie_word_embeddings": False}
        | {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768, "head_dim": 128}
    )
    assert round(experts.parameters / 1e9, 1) == 30.5
    assert 3.3 <= (experts.active_parameters + experts.embedding) / 1e9 < 3.4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mamba"}, "models of type 'mamba' are not counted; counted are llama, mistral, qwen2"),
        ({"model_type": None}, "models of type None are not counted"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"hidden_size": "8"}, "hidden_size must be a whole number from 1 to"),
        ({"vocab_size": True}, "vocab_size must be a whole number from 1 to"),
        ({"vocab_size": 10**30}, "vocab_size must be a whole number from 1 to"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be at most 10000"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
    ],
)
def test_what_cannot_be_counted_is_said(change: dict[str, object], said: str) -> None:
    with pytest.raises(Uncounted) as refused:
        shape_of(LLAMA | change)
    assert str(refused.value).startswith(said)


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "has no config.json"), ("{", "cannot be read as JSON"), ("[1]", "must be a JSON object")],
)
def test_a_folder_without_a_usable_config_is_named(tmp_path: Path, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(Uncounted, match=said) as refused:
        read_shape(tmp_path)
    assert str(tmp_path) in str(refused.value)


def test_a_wrong_key_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"num_attention_heads": 0}))
    with pytest.raises(Uncounted, match=r"config\.json: num_attention_heads must be"):
        read_shape(tmp_path)
