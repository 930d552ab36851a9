"""A small copy of a large model's configuration with random weights: as many layers as have one of every kind."""

import copy
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

VOCABULARY = 512
EXPERTS = 16
WIDTH = 1024
"""Of the feed-forward parts, whose width decides nothing about how tokens see each other."""

_WIDTHS = ("intermediate_size", "ffn_hidden_size")

_LIMITS = ("sliding_window", "window_size", "attention_chunk_size", "index_topk", "index_block_size", "indexer_budget")
"""Parts of the names of settings that hide tokens beyond a distance, which short sequences would never show."""

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

_BITES, _BITING_BLOCKS = 8, 2


def limits_that_bite(part: PreTrainedConfig) -> None:
    """Makes windows and chunks of attention so small, in place, that the sequences of a proof are longer."""
    for name, value in list(vars(part).items()):
        most = _BITING_BLOCKS if name.endswith("blocks") else _BITES
        if any(limit in name for limit in _LIMITS) and isinstance(value, int) and value > most:
            setattr(part, name, most)


def reduced_config(model_config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy with the first layers up to one of every kind (at least two), a small vocabulary, few and narrow experts."""
    reduced = copy.deepcopy(model_config)
    text: Any = reduced.get_text_config()
    layers, wanted = text.num_hidden_layers, _layers_of_every_kind(model_config)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers:
            setattr(text, name, value[:wanted])
        elif name.endswith("_token_id"):
            setattr(text, name, _within(value))
        elif name.endswith(_WIDTHS) and isinstance(value, int):
            setattr(text, name, min(value, WIDTH))
    text.num_hidden_layers = wanted
    text.vocab_size = min(text.vocab_size, VOCABULARY)
    for name in _EXPERT_COUNTS:
        if isinstance(experts := getattr(text, name, None), int):
            groups = getattr(text, "n_group", None) or 1
            setattr(text, name, min(experts, -(-EXPERTS // groups) * groups))
    return reduced


def _within(token_id: Any) -> Any:
    """A token id, or several, of the small vocabulary."""
    if isinstance(token_id, list):
        return [_within(one) for one in token_id]
    return min(token_id, VOCABULARY - 1) if isinstance(token_id, int) else token_id


def random_model(model_config: PreTrainedConfig, *, seed: int) -> PreTrainedModel:
    """A float32 model with eager attention whose distributions are far from uniform and whose vectors are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        causal_lm = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            for parameter in causal_lm.parameters():
                if parameter.ndim >= 2:
                    parameter.normal_(0, 1.5 * parameter.shape[-1] ** -0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    return causal_lm


def _layers_of_every_kind(model_config: PreTrainedConfig) -> int:
    """How many of the first layers hold one of each kind, by their parts and by the configuration's name of the kind."""
    with torch.device("meta"):
        layers: Any = AutoModelForCausalLM.from_config(model_config, attn_implementation="eager").base_model.layers
    named = getattr(model_config.get_text_config(), "layer_types", None) or [""] * len(layers)
    kinds = [
        (kind, *(type(part).__name__ for part in layer.modules())) for kind, layer in zip(named, layers, strict=False)
    ]
    return max(2, 1 + max(kinds.index(kind) for kind in set(kinds)))
