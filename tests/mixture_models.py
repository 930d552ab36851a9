"""Tiny random mixtures of experts as ordinary Hugging Face folders, in sizes that vLLM's kernels on a CPU take."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

CONTEXT, VOCABULARY = 128, 64

_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": CONTEXT,
    "num_experts": 6,
    "num_local_experts": 6,
    "n_routed_experts": 6,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"norm_topk_prob": True},
    "mixtral": {"intermediate_size": 32, "sliding_window": None},
    "olmoe": {"intermediate_size": 32},
    # Multi-head latent attention in the one size that vLLM's kernel for CPUs has.
    "deepseek_v3": {
        "kv_lora_rank": 512,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 64,
        "head_dim": 64,
        "qk_nope_head_dim": 32,
        "v_head_dim": 32,
        "n_group": 2,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "n_shared_experts": 1,
        "topk_method": "noaux_tc",  # vLLM reads these two, transformers does neither
        "scoring_func": "sigmoid",
    },
}
"""What each family needs besides. The first has experts alone, the last also a bias that nobody trains."""


def write_mixture(path: Path, family: str, *, seed: int = 0, layers: int = 3, **changes: Any) -> Path:
    """A folder with the files' names that the family's own folders have."""
    known = vars(AutoConfig.for_model(family))
    settings = {name: value for name, value in _SMALL.items() if name in known} | FAMILIES.get(family, {}) | changes
    torch.manual_seed(seed)
    causal_lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings, num_hidden_layers=layers))
    shake(causal_lm, seed=seed, by=0.1)
    causal_lm.save_pretrained(path)
    return path


@torch.no_grad()
def shake(causal_lm: PreTrainedModel, *, seed: int, by: float) -> None:
    """Adds noise to every parameter and to the biases of routers, in place."""
    noise = torch.Generator().manual_seed(seed)
    biases = [buffer for name, buffer in causal_lm.named_buffers() if "correction_bias" in name]
    for tensor in (*causal_lm.parameters(), *biases):
        tensor.add_(torch.randn(tensor.shape, generator=noise) * by)
