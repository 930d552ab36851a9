"""The shape of a model from its config.json alone: no weights, no torch. What is not known here is refused by name.

Every family below is counted as transformers 5.19 builds it; a test compares the sums with its real models. The families
differ in a few facts, which `_Family` states: where biases are, how many norms a layer has, what stands in for a key that
config.json leaves out.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sluice.sizing.model_shape import Experts, Layer, Linear, ModelShape

_LARGEST = 1 << 40
"""Chosen: no size in a config.json is larger, and products of a few of them still print."""

_CONFIG_BYTES = 16 << 20


class Uncounted(ValueError):
    """The model cannot be counted; the text says why, for people."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Family:
    """The facts in which architectures differ."""

    bias: Literal["none", "qkv", "key"] = "none"
    """Biases of attention: none, of q, k and v, or of all four where `attention_bias` says so."""
    mlp_bias: bool = False
    """Whether `mlp_bias` is a key."""
    qk_norm: Literal["", "head", "all"] = ""
    """Whether queries and keys are normalised: each head by itself, or all heads together."""
    norms: Literal[2, 4] = 2
    float32_norms: bool = False
    fused: bool = False
    """Whether q, k and v are one matrix, and gate and up another."""
    head_dim: int | None = None
    """What a missing `head_dim` stands for; None: hidden_size / num_attention_heads."""
    kv_heads: int | None = None
    """What a missing `num_key_value_heads` stands for; None: as many as heads."""
    tied: bool = False
    """What a missing `tie_word_embeddings` stands for."""
    experts: tuple[str, str, int] | None = None
    """The keys for how many experts there are and how wide they are, and the default of `num_experts_per_tok`."""


_FAMILIES: Mapping[str, _Family] = {
    "llama": _Family(bias="key", mlp_bias=True),
    "mistral": _Family(kv_heads=8),
    "qwen2": _Family(bias="qkv", kv_heads=32),
    "qwen3": _Family(bias="key", qk_norm="head", head_dim=128, kv_heads=32),
    "gemma3_text": _Family(
        bias="key", qk_norm="head", norms=4, float32_norms=True, head_dim=256, kv_heads=4, tied=True
    ),
    "phi3": _Family(fused=True),
    "qwen3_moe": _Family(bias="key", qk_norm="head", kv_heads=4, experts=("num_experts", "moe_intermediate_size", 8)),
    "mixtral": _Family(kv_heads=8, experts=("num_local_experts", "intermediate_size", 2)),
    "olmoe": _Family(bias="key", qk_norm="all", experts=("num_experts", "intermediate_size", 8)),
}

COUNTED = tuple(_FAMILIES)
"""The `model_type`s that are counted."""

_SAME_KEY = {"num_experts": "num_local_experts", "num_local_experts": "num_experts"}


def read_shape(folder: str | Path) -> ModelShape:
    """The shape of the model in a Hugging Face folder. Raises Uncounted."""
    path = Path(folder) / "config.json"
    try:
        if path.stat().st_size > _CONFIG_BYTES:
            raise Uncounted(f"{path} has more than {_CONFIG_BYTES} bytes")
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Uncounted(f"{folder} has no config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, Uncounted):
            raise
        raise Uncounted(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise Uncounted(f"{path} must be a JSON object")
    try:
        return shape_of(config)
    except Uncounted as error:
        raise Uncounted(f"{path}: {error}") from None


def shape_of(config: Mapping[str, Any]) -> ModelShape:
    """The shape that the keys of a config.json describe. Raises Uncounted."""
    kind = config.get("model_type")
    family = _FAMILIES.get(kind) if isinstance(kind, str) else None
    if family is None:
        raise Uncounted(f"models of type {kind!r:.60} are not counted; counted are {', '.join(COUNTED)}")
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    return ModelShape(
        model_type=str(kind),
        vocabulary=_size(config, "vocab_size"),
        hidden=hidden,
        intermediate=_size(config, "intermediate_size"),
        heads=heads,
        kv_heads=_kv_heads(config, family, heads=heads),
        head_dim=_size(config, "head_dim", family.head_dim or hidden // heads),
        tied=_flag(config, "tie_word_embeddings", default=family.tied),
        layers=_layers(config, family),
        qk_norm=bool(family.qk_norm),
        norms=family.norms,
        float32_norms=family.float32_norms,
    )


def _kv_heads(config: Mapping[str, Any], family: _Family, *, heads: int) -> int:
    absent = "num_key_value_heads" not in config  # null stands for as many as heads in every family
    return _size(config, "num_key_value_heads", (family.kv_heads or heads) if absent else heads)


def _layers(config: Mapping[str, Any], family: _Family) -> tuple[Layer, ...]:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    head_dim = _size(config, "head_dim", family.head_dim or hidden // heads)
    attention = _attention(config, family, head_dim=head_dim)
    dense = _feed_forward(config, family)
    normed = heads + _kv_heads(config, family, heads=heads) if family.qk_norm == "all" else 2
    norms = family.norms * hidden + (normed * head_dim if family.qk_norm else 0)
    plain = Layer(linears=(*attention, *dense), experts=None, norm_parameters=norms)
    if family.experts is None:
        return (plain,) * _layer_count(config)
    sparse = Layer(linears=attention, experts=_experts(config, family.experts), norm_parameters=norms)
    return tuple(sparse if _is_sparse(config, index) else plain for index in range(_layer_count(config)))


def _layer_count(config: Mapping[str, Any]) -> int:
    count = _size(config, "num_hidden_layers")
    if count > 10_000:
        raise Uncounted(f"num_hidden_layers must be at most 10000, got {count}")
    return count


def _attention(config: Mapping[str, Any], family: _Family, *, head_dim: int) -> tuple[Linear, ...]:
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    kv = _kv_heads(config, family, heads=heads) * head_dim
    by_key = family.bias == "key" and _flag(config, "attention_bias", default=False)
    into = by_key or family.bias == "qkv"
    out = Linear(name="o_proj", inputs=heads * head_dim, outputs=hidden, bias=by_key)
    if family.fused:
        return (Linear(name="qkv_proj", inputs=hidden, outputs=heads * head_dim + 2 * kv), out)
    return (
        Linear(name="q_proj", inputs=hidden, outputs=heads * head_dim, bias=into),
        Linear(name="k_proj", inputs=hidden, outputs=kv, bias=into),
        Linear(name="v_proj", inputs=hidden, outputs=kv, bias=into),
        out,
    )


def _feed_forward(config: Mapping[str, Any], family: _Family) -> tuple[Linear, ...]:
    hidden, wide = _size(config, "hidden_size"), _size(config, "intermediate_size")
    bias = family.mlp_bias and _flag(config, "mlp_bias", default=False)
    down = Linear(name="down_proj", inputs=wide, outputs=hidden, bias=bias)
    if family.fused:
        return (Linear(name="gate_up_proj", inputs=hidden, outputs=2 * wide), down)
    return (
        Linear(name="gate_proj", inputs=hidden, outputs=wide, bias=bias),
        Linear(name="up_proj", inputs=hidden, outputs=wide, bias=bias),
        down,
    )


def _experts(config: Mapping[str, Any], keys: tuple[str, str, int]) -> Experts:
    count_key, width_key, chosen = keys
    count = _size(config, count_key if count_key in config else _SAME_KEY[count_key])
    return Experts(
        count=count,
        chosen=min(count, _size(config, "num_experts_per_tok", chosen)),
        hidden=_size(config, "hidden_size"),
        intermediate=_size(config, width_key),
    )


def _is_sparse(config: Mapping[str, Any], index: int) -> bool:
    """Whether layer `index` has experts (Qwen3-MoE can have dense layers in between)."""
    dense = config.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise Uncounted(f"mlp_only_layers must be a list, got {dense!r:.60}")
    return index not in dense and (index + 1) % _size(config, "decoder_sparse_step", 1) == 0


def _size(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise Uncounted(f"lacks {key}")
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _LARGEST:
        raise Uncounted(f"{key} must be a whole number from 1 to {_LARGEST}, got {value!r:.60}")
    return value


def _flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise Uncounted(f"{key} must be true or false, got {value!r:.60}")
    return value
