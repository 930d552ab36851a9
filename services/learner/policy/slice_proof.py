"""Whether slices give what the whole row gives: the proof at load once more, for context parallelism.

The proof of proof.py, by rank 0 alone, has shown how the model is laid out. Here every context group computes a small copy
of the model in slices, called as the trainer calls it, against the stock model one sequence at a time. What mixes tokens
elsewhere than in the learner's attention shows here, and so would a fault of the exchange between ranks.
"""

import time

import structlog
from transformers import PreTrainedConfig

from services.learner.distributed.context_group import ContextGroup
from services.learner.distributed.ranks import Ranks
from services.learner.policy.head import Head
from services.learner.policy.model_config import architecture
from services.learner.policy.proof import TOLERANCE_NATS, Forms, difference, model_to_prove
from sluice.config.context_parallel import refusal_of_shape
from sluice.config.schema import Config
from sluice.errors import ConfigError

log = structlog.get_logger(__name__)


def refuse_shape(config: Config, model_config: PreTrainedConfig) -> None:
    """Raises ConfigError for a model whose configuration shows that it cannot be computed in slices."""
    text = model_config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)  # some families have another name for it in config.json
    if refusal := refusal_of_shape(config, text.to_dict() | {"num_attention_heads": heads}):
        raise ConfigError(refusal)


def prove_slices(
    config: Config, model_config: PreTrainedConfig, *, head: Head, forms: Forms, ranks: Ranks, context: ContextGroup
) -> None:
    """Collective. Raises the same ConfigError on every rank, unless a group of several ranks computes what one rank does."""
    if context.size == 1:
        return
    name, path = architecture(model_config), config.model.path
    said = f"learner.context_parallel_size: must be 1 for {path} ({name}), got {context.size}; "
    if forms.rows:
        raise ConfigError(
            f"{said}it has to be computed one sequence a row (docs/models.md), and a sequence cannot be cut then"
        )
    started = time.perf_counter()
    causal_lm = model_to_prove(config, model_config, small=True, device=ranks.device)
    if config.learner.gradient_checkpointing:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    largest, fault = 0.0, ""
    for form in ("packed", "shared") if forms.shares else ("packed",):
        nats, why = difference(causal_lm, head, long=None, form=form, context=context)
        largest = max(largest, nats)
        if not nats <= TOLERANCE_NATS:
            fault = f"it cannot be computed in slices ({why})" if why else f"slices differ by {nats:.2g} nats"
            break
    if faults := [text for text in ranks.hear_all(fault) if text]:
        raise ConfigError(f"{said}{faults[0]}")
    if ranks.leads:
        log.info(
            "slices_proved",
            architecture=name,
            ranks=context.size,
            largest_difference_nats=largest,
            s=time.perf_counter() - started,
        )
