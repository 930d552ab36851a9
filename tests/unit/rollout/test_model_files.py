"""What is read from a model folder, and which snapshots fit it."""

import json
from pathlib import Path

import pytest

from services.rollout.model_files import _tensor_shapes, check_tensors, read_model
from sluice.errors import ConfigError, TransferError
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import Manifest, plan

CONFIG = {"vocab_size": 64, "max_position_embeddings": 128, "eos_token_id": 2, "tie_word_embeddings": True}
SHAPES = {"embed.weight": [64, 8], "lm_head.weight": [64, 8], "norm.weight": [8]}


def write_model(path: Path, *, config: dict[str, object] | None = None, generation: object = None) -> Path:
    (path / "config.json").write_text(json.dumps(CONFIG | (config or {})))
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]} for name, shape in SHAPES.items()}
    encoded = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    (path / "model.safetensors").write_bytes(len(encoded).to_bytes(8, "little") + encoded)
    return path


def manifest(shapes: dict[str, tuple[int, ...]]) -> Manifest:
    layout = plan([(name, "float32", shape) for name, shape in shapes.items()], bucket_bytes=64)
    version = PolicyVersion(lineage="a", number=1)
    return Manifest(version=version, tensors=layout.tensors, total_bytes=layout.total_bytes, bucket_bytes=64, digest="")


def test_limits_hashes_and_tensors_are_read(tmp_path: Path) -> None:
    model = read_model(write_model(tmp_path))
    assert (model.vocab_size, model.max_position_embeddings, model.end_token_ids) == (64, 128, {2})
    assert model.tensors == {"embed.weight": (64, 8), "norm.weight": (8,)}
    assert len(model.model_hash) == 64
    assert model.tokenizer_hash == ""


def test_what_no_engine_takes_is_not_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    further = {"model.layers.2.eh_proj.weight": [8], "model.layers.1.self_attn.rotary_emb.inv_freq": [4]}
    monkeypatch.setattr(
        "tests.unit.rollout.test_model_files.SHAPES", SHAPES | further | {"model.layers.1.a.weight": [8]}
    )
    found = read_model(write_model(tmp_path, config={"num_hidden_layers": 2})).tensors
    assert found.keys() == {"embed.weight", "norm.weight", "model.layers.1.a.weight"}


def test_an_untied_head_is_one_of_the_tensors(tmp_path: Path) -> None:
    assert "lm_head.weight" in read_model(write_model(tmp_path, config={"tie_word_embeddings": False})).tensors


@pytest.mark.parametrize(
    ("generation", "expected"),
    [(None, {2}), ({"temperature": 0.1}, {2}), ({"eos_token_id": 5}, {5}), ({"eos_token_id": [5, 7]}, {5, 7})],
)
def test_end_tokens_come_from_the_generation_config_then_from_the_config(
    tmp_path: Path, generation: object, expected: set[int]
) -> None:
    assert read_model(write_model(tmp_path, generation=generation)).end_token_ids == expected


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        read_model(tmp_path)
    write_model(tmp_path, config={"eos_token_id": None})
    with pytest.raises(ConfigError, match="eos_token_id"):
        read_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no \.safetensors"):
        read_model(tmp_path)


@pytest.mark.parametrize("name", ["vocab_size", "max_position_embeddings"])
@pytest.mark.parametrize("value", [None, "128", 0, True])
def test_a_config_that_does_not_say_a_size_is_refused_by_its_name(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"must have a whole number {name}, got {value!r}"):
        read_model(write_model(tmp_path, config={name: value, "n_positions": 128}))


def test_the_models_own_tensors_fit_and_a_tied_head_may_come_along() -> None:
    expected = {"embed.weight": (64, 8), "norm.weight": (8,)}
    check_tensors(manifest(expected), expected)
    check_tensors(manifest(expected | {"lm_head.weight": (64, 8)}), expected)


@pytest.mark.parametrize(
    ("announced", "fault"),
    [
        ({"embed.weight": (64, 8)}, r"lacks 1 tensors \(norm\.weight\)"),
        ({"embed.weight": (64, 8), "norm.weight": (8,), "bias": (1,)}, r"has unknown 1 tensors \(bias\)"),
        ({"embed.weight": (8, 64), "norm.weight": (8,)}, r"has misshapen 1 tensors \(embed\.weight\)"),
    ],
)
def test_another_models_tensors_are_refused_by_name(announced: dict[str, tuple[int, ...]], fault: str) -> None:
    with pytest.raises(TransferError, match=fault):
        check_tensors(manifest(announced), {"embed.weight": (64, 8), "norm.weight": (8,)})


@pytest.mark.parametrize("content", [b"", b"?", b"\xff" * 64, (2).to_bytes(8, "little") + b"{]"])
def test_a_broken_weights_file_is_named(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors is not a safetensors file"):
        _tensor_shapes(tmp_path)
