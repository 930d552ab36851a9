"""A tiny random model of every family of causal decoders that the installed transformers has, and what the learner says.

`python -m tests.decoder_families` prints the table of docs/models.md.
"""

import inspect
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from services.learner.policy.head import Head
from services.learner.policy.model_config import config_parts, count_parameters, logit_cap, logit_factor, prepare
from services.learner.policy.proof import compare
from services.learner.policy.reduced_model import limits_that_bite, random_model
from sluice.errors import ConfigError

FAMILIES = tuple(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
"""The model types, as in a config.json."""

VOCABULARY = 64

CONTEXT = 128

LARGEST = 100_000_000

PACKED = "trains it packed"
UNSHARED = "trains it packed, but computes a group's prompt for each sample"
ROWS = "trains it one sequence a row"
OTHERWISE = "refuses it: its log-probabilities differ in both layouts"
_REFUSALS = {
    "refuses it: the decoder layers are not in `layers` of the base model": "elsewhere than in `layers`",
    "refuses it: the output head is not one matrix": "linear output head without bias",
    "refuses it: transformers makes no causal model of its plain configuration": "is no causal model of transformers",
}
"""Rows of the table, and the sign of each in the message."""

_TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "embedding_size": 32,
    "intermediate_size": 48,
    "ffn_hidden_size": 48,
    "expert_ffn_hidden_size": 16,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_layers": 4,
    "num_attention_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "sliding_window": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "state_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "attention_chunk_size": 8,
}
"""Small sizes under the names that configurations have for them; a family takes the names that it has a value for."""

_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

_ZAMBA = {
    "attention_hidden_size": 64,
    "attention_head_dim": 16,
    "num_key_value_heads": 4,
    "mamba_dt_rank": 4,
    "mamba_headdim": 8,
    "n_mamba_heads": 8,
}

_HEADS_ALIKE = {"num_key_value_heads": 4}

_OF_FAMILY: dict[str, dict[str, Any]] = {
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "minicpm3",
            "longcat_flash",
            "youtu",
        ),
        _HEADS_ALIKE,
    ),
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": _PLAIN_ROPE, "sliding_attention": _PLAIN_ROPE},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "head_dim": 128,
    },
    "deepseek_v2": {"num_experts_per_tok": 2, **_HEADS_ALIKE},
    "dots1": {"n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gemma3n_text": {
        "intermediate_size": [48] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 2,
        "laurel_rank": 8,
    },
    "kimi_linear": {"num_experts_per_token": 2, "linear_num_heads": 4, "linear_head_dim": 8, **_HEADS_ALIKE},
    "lfm2": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "conv", "full_attention", "conv"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "minimax_m3_vl_text": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"ssm_state_size": 8, "mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 1, "chunk_size": 16},
    "phi4_multimodal": {"vision_config": {"num_hidden_layers": 1}, "audio_config": {"num_blocks": 1}},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 4,
        "hc_lowrank": 8,
    },
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 1, **_ZAMBA},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2, "chunk_size": 16, "adapter_rank": 8, **_ZAMBA},
    "zaya": {"num_experts_per_tok": 1},
}
"""What a family needs besides."""


_HEADLESS = ("musicgen", "musicgen_melody")
"""Families whose configuration cannot be made without those of the models in it."""


def tiny_config(family: str) -> PreTrainedConfig:
    """The configuration of a family's tiny model; several models in one have the sizes of their defaults."""
    if family in _HEADLESS:
        parts = {"text_encoder": AutoConfig.for_model("t5"), "audio_encoder": AutoConfig.for_model("encodec")}
        decoder = AutoConfig.for_model(f"{family}_decoder")
        return AutoConfig.for_model(
            family, decoder=decoder.to_dict(), **{name: part.to_dict() for name, part in parts.items()}
        )
    known = AutoConfig.for_model(family)
    text = known.get_text_config()
    tiny = _tiny(text, family)
    several: Any = type(known)
    return tiny if text is known else several(text_config=tiny.to_dict())


def _tiny(text: PreTrainedConfig, family: str) -> PreTrainedConfig:
    names = set(vars(text)) | set(inspect.signature(type(text).__init__).parameters)
    wanted = {name: value for name, value in _TINY.items() if name == "head_dim" or vars(text).get(name) is not None}
    return type(text)(**{name: value for name, value in wanted.items() if name in names} | _OF_FAMILY.get(family, {}))


def outcome(family: str) -> str:
    """What becomes of a family, as a row of docs/models.md names it. Raises what no row has a name for."""
    model_config = tiny_config(family)
    prepare(model_config, max_model_len=CONTEXT)
    for part in config_parts(model_config):
        limits_that_bite(part)
    try:
        parameters = count_parameters(model_config, path=family)
    except ConfigError as error:
        return next(row for row, sign in _REFUSALS.items() if sign in one_only(error))
    assert parameters < LARGEST, f"{family}: {parameters} parameters are not tiny"
    head = Head(
        temperature=0.8,
        chunk_tokens=64,
        float32=False,
        factor=logit_factor(model_config),
        cap=logit_cap(model_config),
    )
    verdict = compare(random_model(model_config, seed=0), head)
    if not verdict.passes:
        return OTHERWISE
    if verdict.needs_rows:
        return ROWS
    return PACKED if verdict.can_share else UNSHARED


def one_only(error: ConfigError) -> str:
    """The message, which has to be one line that names the setting and the folder."""
    text = str(error)
    assert text.startswith("model.path: ")
    assert len(text.splitlines()) == 1
    return text


def table() -> str:
    """The table of docs/models.md."""
    found: dict[str, list[str]] = {row: [] for row in (PACKED, UNSHARED, ROWS, *_REFUSALS, OTHERWISE)}
    for family in FAMILIES:
        found[outcome(family)].append(f"`{family}`")
    lines = [f"| {row} | {len(names)} | {', '.join(names)} |" for row, names in found.items() if names]
    return "\n".join(["| what the learner does | families | `model_type` |", "|---|---|---|", *lines])


if __name__ == "__main__":
    print(table())
