"""The matrices of a causal decoder, and how many parameters they have. config_json.py reads them from a model folder."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """One linear layer, or several that are fused."""

    name: str
    """As the module is called: q_proj."""
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return self.inputs * self.outputs + (self.outputs if self.bias else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experts:
    """The feed-forward part of a mixture-of-experts layer."""

    count: int
    chosen: int
    """Experts that one token passes through."""
    hidden: int
    intermediate: int

    @property
    def router(self) -> int:
        """Parameters of the matrix that chooses."""
        return self.count * self.hidden

    def parameters(self, experts: int) -> int:
        """Parameters of so many experts: three matrices each."""
        return experts * 3 * self.hidden * self.intermediate


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One decoder layer."""

    linears: tuple[Linear, ...]
    experts: Experts | None
    norm_parameters: int

    @property
    def parameters(self) -> int:
        """All parameters, every expert included."""
        return self._without_experts + (self.experts.parameters(self.experts.count) if self.experts else 0)

    @property
    def active_parameters(self) -> int:
        """The parameters that one token passes through."""
        return self._without_experts + (self.experts.parameters(self.experts.chosen) if self.experts else 0)

    @property
    def _without_experts(self) -> int:
        router = self.experts.router if self.experts else 0
        return sum(linear.parameters for linear in self.linears) + router + self.norm_parameters


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A causal decoder."""

    model_type: str
    vocabulary: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    """Whether the head is the embedding."""
    layers: tuple[Layer, ...]
    qk_norm: bool
    """Whether queries and keys are normalised."""
    norms: Literal[2, 4]
    """Norms of a layer's residual stream; with 4 those behind attention and feed-forward part are normalised too."""
    float32_norms: bool
    """Whether a norm multiplies with its gain in float32 (Gemma)."""

    @property
    def embedding(self) -> int:
        """Parameters of the embedding, and of the head."""
        return self.vocabulary * self.hidden

    @property
    def root(self) -> int:
        """Parameters outside the layers: embedding, final norm, and the head unless it is tied."""
        return self.embedding * (1 if self.tied else 2) + self.hidden

    @cached_property
    def parameters(self) -> int:
        """All parameters, a tied head once."""
        return self.root + sum(layer.parameters for layer in self.layers)

    @cached_property
    def active_parameters(self) -> int:
        """The parameters that multiply for one token: no embedding that is looked up, of experts those chosen, one head."""
        return self.embedding + self.hidden + sum(layer.active_parameters for layer in self.layers)

    @cached_property
    def largest_layer(self) -> int:
        """Parameters of the largest layer."""
        return max(layer.parameters for layer in self.layers)

    def kv_elements_a_token(self, tensor_parallel: int = 1) -> int:
        """Elements of keys and values that one token leaves on one of `tensor_parallel` devices."""
        return 2 * len(self.layers) * -(-self.kv_heads // tensor_parallel) * self.head_dim

    def adapter_parameters(self, rank: int, targets: Literal["all-linear"] | list[str]) -> int:
        """Parameters of LoRA adapters of `rank` on the linear layers named; experts and head get none."""
        return sum(
            rank * (linear.inputs + linear.outputs)
            for layer in self.layers
            for linear in layer.linears
            if targets == "all-linear" or any(linear.name == target.rpartition(".")[2] for target in targets)
        )
