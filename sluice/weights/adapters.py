"""LoRA adapters as a snapshot (arXiv:2106.09685): whether a run pushes adapters, and the names of their tensors.

For every trained layer LAYER, whose weight in the base model is `LAYER.weight` [out, in], float32 both:

    LAYER.lora_A.weight   [rank, in]
    LAYER.lora_B.weight   [out, rank]

These are PEFT's names without the prefix of PEFT's files. sluice.weights.merging merges adapters.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sluice.config.schema import Config

_A, _B, _WEIGHT = ".lora_A.weight", ".lora_B.weight", ".weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Adapter:
    """The names of one layer's adapter."""

    layer: str

    @property
    def weight(self) -> str:
        """The name of the base model's weight."""
        return self.layer + _WEIGHT

    @property
    def a(self) -> str:
        return self.layer + _A

    @property
    def b(self) -> str:
        return self.layer + _B


def adapters_among(names: Iterable[str]) -> dict[str, Adapter]:
    """The adapters that have a matrix among `names`, by the name of the adapter's base weight."""
    layers = {name.removesuffix(suffix) for name in names for suffix in (_A, _B) if name.endswith(suffix)}
    return {adapter.weight: adapter for adapter in (Adapter(layer=layer) for layer in sorted(layers))}


def pushes_adapters(config: Config) -> bool:
    """Whether snapshots hold only adapters, which rollouts then merge."""
    return config.weights.lora == "adapter"


def scale_of(config: Config) -> float:
    """The factor of B @ A, for a configuration that trains adapters."""
    return config.model.lora_alpha / config.model.lora_rank
