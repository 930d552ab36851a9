"""Whether a model can be trained with `learner.context_parallel_size`, from its config.json alone: no torch.

The learner looks again with what transformers makes of the file, and proves the model in slices before it trains.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sluice.config.divisors import divisors
from sluice.config.schema import Config
from sluice.errors import ConfigError

_KINDS = ("layer_types", "layers_block_type")
"""Keys of config.json that name the kind of each layer."""

_CONFIG_BYTES = 16 << 20
"""No config.json is larger."""


def check_context_parallel(config: Config) -> None:
    """Raises ConfigError with the choices where heads or layers forbid it; passes where config.json cannot be read."""
    if config.learner.context_parallel_size == 1:
        return
    path = Path(config.model.path) / "config.json"
    try:
        read = json.loads(path.read_bytes()) if path.stat().st_size <= _CONFIG_BYTES else None
    except (OSError, ValueError, RecursionError):
        return  # whoever loads the model says what is wrong with it
    text = read.get("text_config", read) if isinstance(read, dict) else None
    if isinstance(text, dict) and (refusal := refusal_of_shape(config, text)):
        raise ConfigError(refusal)


def refusal_of_shape(config: Config, text: Mapping[str, Any]) -> str:
    """The line that refuses a model whose text configuration is `text`; empty where its slices can be computed."""
    size, path = config.learner.context_parallel_size, config.model.path
    if size == 1:
        return ""
    kinds = {kind for key in _KINDS for kind in _texts(text.get(key))}
    if others := sorted(kind for kind in kinds if "attention" not in kind or "linear" in kind):
        return (
            f"learner.context_parallel_size: must be 1 for {path}, got {size}; its layers of kind {', '.join(others)} mix "
            "tokens otherwise than by attention, so a sequence cannot be cut"
        )
    heads = text.get("num_attention_heads")
    if isinstance(heads, int) and not isinstance(heads, bool) and heads > 0 and heads % size:
        choices = ", ".join(map(str, divisors(math.gcd(heads, config.learner_ranks))))
        return (
            f"learner.context_parallel_size: must divide the {heads} attention heads of {path}, got {size}; with "
            f"{config.learner_ranks} ranks of the learner: {choices}"
        )
    return ""


def _texts(value: Any) -> Iterable[str]:
    return (each for each in value if isinstance(each, str)) if isinstance(value, list) else ()
