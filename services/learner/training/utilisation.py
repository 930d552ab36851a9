"""Which share of the devices' peak a step's training reaches (MFU, arXiv:2204.02311 appendix B), counted from the model itself.

Model FLOPs of a sequence of s tokens: 6 N s + 6 D s^2 for every layer of full attention. N counts the parameters that
multiply for one token: all but embeddings that are only looked up, the head included (a tied one once), of experts those
that the router chooses. A frozen parameter counts 4, because its own gradient is not computed. D is heads x head_dim; a
causal token sees half of its sequence on average, and with a window of w tokens at most w.

The head counts for every token, as elsewhere, although this learner computes it at completion tokens alone. What is
computed twice counts in `hfu` alone; a prompt that the samples of a group share counts once. A model whose attention or
experts are of another kind has neither figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from sluice.config.schema import Config

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
_QUADRATIC = {"full_attention": None, "sliding_attention": "sliding_window"}
"""Kinds of layers whose attention compares tokens pair by pair, and the setting that has their window."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCosts:
    """Floating-point operations of forward and backward pass."""

    token: float
    """A token, attention's products of tokens apart."""
    forward: float
    """Of these, the forward pass."""
    layers_forward: float
    """Of these, the layers alone."""
    width: int
    """D."""
    windows: tuple[int | None, ...]
    """For every layer with attention its window in tokens, None without a window."""

    def pairs(self, tokens: int) -> float:
        """Pairs of tokens that attention compares in a sequence, over all layers."""
        return sum(_pairs(tokens, window) for window in self.windows)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepFlops:
    """The operations of one step over all ranks."""

    model: float
    computed: float
    """With what is computed a second time: checkpointed layers, and the log-probabilities of `proximal: recompute`."""


def costs_of(causal_lm: PreTrainedModel) -> ModelCosts | None:
    """The costs of a loaded model, sharded or not; None where they are not known exactly."""
    text = causal_lm.config.get_text_config()
    heads, windows = getattr(text, "num_attention_heads", None), _windows(text)
    share = _expert_share(text)
    if heads is None or windows is None or getattr(text, "kv_lora_rank", None):
        return None
    looked_up = _looked_up(causal_lm)
    stack: Any = getattr(causal_lm.base_model, "layers", nn.ModuleList())
    layers = {id(p) for p in stack.parameters()}
    token = forward = layers_forward = 0.0
    for name, parameter in causal_lm.named_parameters():
        if id(parameter) in looked_up:
            continue
        active = float(parameter.numel())
        if ".experts." in name:
            if share is None:
                return None
            active *= share
        token += (6 if parameter.requires_grad else 4) * active
        forward += 2 * active
        layers_forward += 2 * active * (id(parameter) in layers)
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    return ModelCosts(token=token, forward=forward, layers_forward=layers_forward, width=width, windows=windows)


def step_flops(
    costs: ModelCosts, lengths: Sequence[int], config: Config, *, not_computed: Sequence[int] = ()
) -> StepFlops:
    """The operations of a step that trains sequences of these lengths in tokens, but for the prompts `not_computed`."""
    tokens = sum(lengths) - sum(not_computed)
    pairs = sum(map(costs.pairs, lengths)) - sum(map(costs.pairs, not_computed))
    forward_pairs = 4 * costs.width * pairs  # two products of 2 operations for each pair and channel
    model = costs.token * tokens + 3 * forward_pairs
    again = 0.0
    if config.learner.gradient_checkpointing:
        again += costs.layers_forward * tokens + forward_pairs
    if config.algorithm.proximal == "recompute":
        again += costs.forward * tokens + forward_pairs
    return StepFlops(model=model, computed=model + again)


def utilisation(flops: StepFlops, *, elapsed_s: float, peak_flops: float) -> dict[str, float]:
    """`learner/mfu`, and `learner/hfu` where something is computed twice; peak_flops of all devices together."""
    possible = peak_flops * elapsed_s
    computed = {} if flops.computed == flops.model else {"learner/hfu": flops.computed / possible}
    return {"learner/mfu": flops.model / possible, **computed}


def _pairs(tokens: int, window: int | None) -> float:
    """Pairs of one causal layer: half of tokens^2, less what lies outside the window."""
    seen = tokens if window is None else min(window, tokens)
    return seen * tokens - seen * seen / 2


def _windows(text: Any) -> tuple[int | None, ...] | None:
    """`ModelCosts.windows` of a configuration; None for a kind of layer that is not known here."""
    kinds: Sequence[str] | None = getattr(text, "layer_types", None)
    if kinds is None:
        window = getattr(text, "sliding_window", None)
        return (window,) * getattr(text, "num_hidden_layers", 0) or None
    if any(kind not in _QUADRATIC for kind in kinds):
        return None
    settings = [_QUADRATIC[kind] for kind in kinds]
    return tuple(None if setting is None else getattr(text, setting, None) for setting in settings)


def _expert_share(text: Any) -> float | None:
    """The share of the experts that a token passes through; None where the configuration does not say."""
    count = next((value for name in _EXPERT_COUNTS if (value := getattr(text, name, None))), None)
    chosen = getattr(text, "num_experts_per_tok", None)
    return chosen / count if count and chosen else None


def _looked_up(causal_lm: PreTrainedModel) -> set[int]:
    """Ids of the parameters that are looked up and never multiply: embeddings, but for one that is the head too."""
    head = causal_lm.get_output_embeddings()
    tables = {id(m.weight) for m in causal_lm.modules() if isinstance(m, nn.Embedding)}
    return tables - ({id(head.weight)} if isinstance(head, nn.Linear) else set())
