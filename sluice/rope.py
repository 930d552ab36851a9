"""Rotary position embeddings whose frequencies would change with the length of an input, fixed for a whole run.

Learner and rollouts have to compute one policy. vLLM chooses the frequencies once, when it starts: of longrope (Phi-3) the
long factors exactly where a sequence of the run may be longer than the original context, and of dynamic NTK one base for all
lengths. transformers chooses anew at every call, by the longest sequence of the call: a packed micro-batch would change with
what is packed together. So the learner, and the engine of transformers, load the model with what vLLM would have chosen.
"""

import math
from collections.abc import Mapping
from typing import Any


def fix_rope(model_config: Any, *, max_model_len: int) -> None:
    """Fixes the frequencies of a transformers configuration in place; max_model_len: longest sequence of the run in tokens."""
    found = getattr(model_config, "rope_parameters", None)
    if not isinstance(found, Mapping) or not found:
        return
    facts = {
        "max_model_len": max_model_len,
        "max_positions": int(getattr(model_config, "max_position_embeddings", 0) or 0),
        "head_size": _head_size(model_config),
    }
    by_layer = all(isinstance(value, Mapping) or value is None for value in found.values())
    model_config.rope_parameters = (
        {kind: value and served_rope(value, **facts) for kind, value in found.items()}
        if by_layer
        else served_rope(found, **facts)
    )


def served_rope(
    parameters: Mapping[str, Any], *, max_model_len: int, max_positions: int, head_size: int
) -> dict[str, Any]:
    """The `rope_parameters` that give vLLM's frequencies at every length; parameters that are fixed already are returned.

    max_positions: the model's `max_position_embeddings`; head_size: elements of one head.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "longrope":
        return _longrope(parameters, max_model_len=max_model_len, max_positions=max_positions)
    if kind == "dynamic":
        return _dynamic(parameters, max_positions=max_positions, head_size=head_size)
    return dict(parameters)


def _longrope(parameters: Mapping[str, Any], *, max_model_len: int, max_positions: int) -> dict[str, Any]:
    """One list of factors under both names, with the magnitude that belongs to it (vLLM's phi3_long_rope_scaled_rope.py)."""
    original = int(parameters["original_max_position_embeddings"])
    length = "long" if max_model_len > original else "short"
    stretch = max_positions / original
    magnitude = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    factors = list(parameters[f"{length}_factor"])
    return {
        **parameters,
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": parameters.get(f"{length}_mscale") or magnitude,
    }


def _dynamic(parameters: Mapping[str, Any], *, max_positions: int, head_size: int) -> dict[str, Any]:
    """Plain frequencies with another base (vLLM's dynamic_ntk_scaling_rope.py and dynamic_ntk_alpha_rope.py)."""
    size = int(head_size * parameters.get("partial_rotary_factor", 1.0))
    alpha, factor = parameters.get("alpha"), parameters.get("factor") or 1.0
    trained = parameters.get("max_trained_positions") or max_positions
    growth = alpha if alpha else factor * max_positions / trained - (factor - 1)
    kept = {key: value for key, value in parameters.items() if key not in ("factor", "alpha", "type")}
    theta = float(parameters.get("rope_theta", 10000.0))
    return {**kept, "rope_type": "default", "rope_theta": theta * growth ** (size / (size - 2))}


def _head_size(model_config: Any) -> int:
    try:
        size = getattr(model_config, "head_dim", None)
    except RuntimeError:  # transformers raises this where the size differs by layer
        size = None
    heads = getattr(model_config, "num_attention_heads", None) or 1
    return int(size or (getattr(model_config, "hidden_size", None) or 0) // heads)
