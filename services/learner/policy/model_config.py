"""The configuration under which the learner loads a model: the folder's, with all randomness off and the engine's positions.

Refuses models that cannot be trained here, with one line: no decoder layers to shard, or a head that is more than a matrix.
"""

import copy
import math
from collections.abc import Callable

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.rope import fix_rope

_LOGIT_FACTORS: dict[str, Callable[[float], float]] = {
    "logit_scale": lambda value: value,  # Cohere
    "logits_scaling": lambda value: 1 / value,  # Granite
    "lm_head_multiplier": lambda value: value,  # Falcon H1
    "logits_mup_width_multiplier": lambda value: 1 / value,  # Inkling
}
_LOGIT_CAPS = ("final_logit_softcapping", "logits_soft_cap")

_RANDOM = ("drop", "jitter")
"""Parts of the names of settings that make a model's outputs random: dropout, resid_pdrop, layerdrop, jitter_noise."""


def read_model_config(config: Config) -> PreTrainedConfig:
    """The configuration of `model.path` as the learner computes it. Raises ConfigError for a folder that is no such model."""
    try:
        found = AutoConfig.from_pretrained(config.model.path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"model.path: {config.model.path} has no usable config.json: {one_line(error)}") from error
    prepare(found, max_model_len=config.longest_sequence)
    return found


def prepare(model_config: PreTrainedConfig, *, max_model_len: int) -> None:
    """Switches randomness off and fixes position embeddings, in place, in nested configurations too."""
    for part in config_parts(model_config):
        for name, value in list(vars(part).items()):
            if any(sign in name for sign in _RANDOM) and isinstance(value, float):
                setattr(part, name, 0.0)
        fix_rope(part, max_model_len=max_model_len)


def count_parameters(model_config: PreTrainedConfig, *, path: str) -> int:
    """Parameters of the model, built without memory. Raises ConfigError, with the architecture, unless it can be trained."""
    return sum(parameter.numel() for parameter in empty_model(model_config, path=path).parameters())


def empty_model(model_config: PreTrainedConfig, *, path: str, attention: str | None = "eager") -> PreTrainedModel:
    """The float32 model on the meta device, without memory; attention: None for the model's own choice.

    Raises ConfigError, with the architecture, unless the model can be trained.
    """
    try:
        with torch.device("meta"):
            causal_lm = AutoModelForCausalLM.from_config(
                copy.deepcopy(model_config), dtype=torch.float32, attn_implementation=attention
            )
    except Exception as error:  # whatever transformers raises for a model that it cannot build as a causal model
        raise ConfigError(
            f"model.path: {path} ({architecture(model_config)}) is no causal model of transformers: {one_line(error)}"
        ) from error
    check_parts(causal_lm, path=path)
    return causal_lm


def load_weights(path: str, model_config: PreTrainedConfig, *, attention: str | None) -> PreTrainedModel:
    """The model of a folder in float32; attention: None for the model's own choice. Raises ConfigError."""
    try:
        return AutoModelForCausalLM.from_pretrained(
            path, config=model_config, dtype=torch.float32, attn_implementation=attention
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"model.path: {path} cannot be loaded: {one_line(error)}") from error


def check_parts(causal_lm: PreTrainedModel, *, path: str) -> None:
    """Raises ConfigError unless a model has decoder layers that can be sharded and a head that is one matrix."""
    name = type(causal_lm).__name__
    if not isinstance(getattr(causal_lm.base_model, "layers", None), nn.ModuleList):
        raise ConfigError(
            f"model.path: {path} ({name}) keeps its decoder layers elsewhere than in `layers`, where the learner shards "
            "them; docs/models.md lists the architectures that are trained"
        )
    head = causal_lm.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise ConfigError(f"model.path: {path} ({name}) must have a linear output head without bias, got {head}")


def logit_factor(model_config: PreTrainedConfig) -> float:
    """What the model multiplies its head's logits with; the proof finds a model that does it by a setting not known here."""
    text = model_config.get_text_config()
    given = {name: getattr(text, name, None) for name in _LOGIT_FACTORS}
    return math.prod(_LOGIT_FACTORS[name](value) for name, value in given.items() if value is not None)


def logit_cap(model_config: PreTrainedConfig) -> float | None:
    """The c of c * tanh(logit / c), where the model bends its logits (Gemma 2)."""
    text = model_config.get_text_config()
    return next((cap for name in _LOGIT_CAPS if (cap := getattr(text, name, None)) is not None), None)


def architecture(model_config: PreTrainedConfig) -> str:
    """The name of the architecture, for messages."""
    return (getattr(model_config, "architectures", None) or [model_config.model_type])[0]


def config_parts(model_config: PreTrainedConfig) -> list[PreTrainedConfig]:
    """A configuration and all configurations in it."""
    nested = [value for value in vars(model_config).values() if isinstance(value, PreTrainedConfig)]
    return [model_config, *(part for child in nested for part in config_parts(child))]


def one_line(error: BaseException) -> str:
    """An error's kind and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"
