"""The facts of a model folder, read from its JSON files and safetensors headers: no torch, no transformers.

Both engines take limits and end tokens from here, so that the engines agree. Nothing else is read from
generation_config.json, whose sampling defaults would silently change the distribution that training assumes.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from sluice.errors import ConfigError, TransferError
from sluice.weights.adapters import adapters_among
from sluice.weights.further_layers import is_further
from sluice.weights.manifest import Manifest

_TIED_HEAD = "lm_head.weight"

_COMPUTED = "rotary_emb.inv_freq"
"""The end of a name that old files have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFacts:
    """A model folder's limits, names and hashes."""

    path: Path
    vocab_size: int
    """Every token id is below `vocab_size`."""
    max_position_embeddings: int
    """Longest sequence in tokens."""
    end_token_ids: frozenset[int]
    """Sampling one of these ends a completion."""
    model_hash: str
    """blake3 of config.json, hex."""
    tokenizer_hash: str
    """blake3 of tokenizer.json, hex; empty without such a file."""
    tensors: Mapping[str, tuple[int, ...]] = field(repr=False)
    """Shape of every tensor that a snapshot must hold, by Hugging Face name, without a tied head."""


def read_model(path: Path) -> ModelFacts:
    """Reads a model folder. Raises ConfigError when the folder is no model folder."""
    if not (path / "config.json").is_file():
        raise ConfigError(f"model.path: must be a Hugging Face model folder, but {path} has no config.json")
    config = _read_json(path / "config.json")
    text_config = config.get("text_config", config)
    layers = text_config.get("num_hidden_layers")
    tensors = {name: shape for name, shape in _tensor_shapes(path).items() if not _is_unused(name, layers)}
    if config.get("tie_word_embeddings", text_config.get("tie_word_embeddings", False)):
        tensors.pop(_TIED_HEAD, None)
    return ModelFacts(
        path=path,
        vocab_size=_size(text_config, "vocab_size", path),
        max_position_embeddings=_size(text_config, "max_position_embeddings", path),
        end_token_ids=_end_token_ids(path, text_config),
        model_hash=_hash(path / "config.json"),
        tokenizer_hash=_hash(path / "tokenizer.json"),
        tensors=tensors,
    )


def _is_unused(tensor: str, layers: object) -> bool:
    """Whether no engine takes a tensor of the files: layers behind the last, and what models compute by themselves today."""
    return tensor.endswith(_COMPUTED) or (isinstance(layers, int) and is_further(tensor, layers=layers))


def check_tensors(manifest: Manifest, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises TransferError unless a snapshot holds exactly the model's tensors with their shapes."""
    _compare(manifest, expected, optional={_TIED_HEAD}, hint="same model")


def check_adapters(manifest: Manifest, weights: Mapping[str, tuple[int, ...]], *, rank: int) -> None:
    """Raises TransferError unless a snapshot holds only whole adapters of this rank for these weights."""
    expected: dict[str, tuple[int, ...]] = {}
    for name, adapter in adapters_among(spec.name for spec in manifest.tensors).items():
        if len(shape := weights.get(name, ())) == 2:
            expected |= {adapter.a: (rank, shape[1]), adapter.b: (shape[0], rank)}
    _compare(manifest, expected, optional=set(), hint="same model, model.lora_rank and weights.lora")


def _compare(
    manifest: Manifest, expected: Mapping[str, tuple[int, ...]], *, optional: Collection[str], hint: str
) -> None:
    announced = {spec.name: spec.shape for spec in manifest.tensors}
    missing, unknown = expected.keys() - announced.keys(), announced.keys() - expected.keys() - {*optional}
    reshaped = [name for name in expected.keys() & announced.keys() if expected[name] != announced[name]]
    for names, fault in ((missing, "lacks"), (unknown, "has unknown"), (reshaped, "has misshapen")):
        if names:
            listed = ", ".join(sorted(names)[:3])
            raise TransferError(
                f"snapshot {manifest.version} {fault} {len(names)} tensors ({listed}); are rollout and learner using the "
                f"{hint}?"
            )


def _size(config: Mapping[str, Any], name: str, path: Path) -> int:
    """Raises ConfigError when config.json does not say it under this name (GPT-2 has `n_positions`)."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"model.path: config.json of {path} must have a whole number {name}, got {value!r}; docs/models.md lists the "
            "architectures that are trained"
        )
    return value


def _end_token_ids(path: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """The end tokens of Hugging Face's generate: from generation_config.json, else from config.json."""
    generation = path / "generation_config.json"
    ids = _read_json(generation).get("eos_token_id") if generation.is_file() else None
    if ids is None:
        ids = config.get("eos_token_id")
    if ids is None:
        raise ConfigError(f"{path}: neither generation_config.json nor config.json names an eos_token_id")
    return frozenset([ids] if isinstance(ids, int) else ids)


def _tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(path.glob("*.safetensors")):
        shapes |= _shapes_in(file)
    if not shapes:
        raise ConfigError(f"model.path: {path} has no .safetensors file")
    return shapes


def _shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes from one file's header: 8 bytes of length, then JSON. Raises ConfigError for a broken header."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > file.stat().st_size:
                raise ValueError(f"a header of {length} bytes in a file of {file.stat().st_size}")
            header = json.loads(stream.read(length))
        return {name: tuple(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"model.path: {file} is not a safetensors file: {error}; copy the model again") from error


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _hash(path: Path) -> str:
    return blake3(path.read_bytes()).hexdigest() if path.is_file() else ""
