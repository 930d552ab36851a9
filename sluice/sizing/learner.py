"""The memory of one rank of the learner at its peak, which is one of three moments of an update.

 moment     what is there beside the states                                   grows with
 head       all activations, [chunk, vocabulary] logits, the head's gradient  tokens, logprob_chunk_tokens, vocabulary
 backward   all activations, one layer's weights and gradients                tokens, the largest layer
 end        gradients of embedding and head on their way to the shards        vocabulary

States are float32: weights, AdamW's two moments, gradients, a share a rank (services/learner/policy/model.py). The kernels'
own buffers, the allocator's fragments and the process itself (on CUDA its context and NCCL's buffers) are not counted.

Letters: R ranks, T tokens of a micro-batch, V vocabulary, D hidden size, C tokens of a chunk, b bytes of an element.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from sluice.config.derived import logprob_chunk_tokens, longest_sequence_tokens
from sluice.config.schema import Config
from sluice.sizing import activations
from sluice.sizing.memory_parts import Estimate, Part, kept
from sluice.sizing.model_shape import ModelShape

_FLOAT32 = 4
BYTES = {"float32": 4, "bfloat16": 2}
"""Bytes of an element of `model.dtype`."""

_STATE_KNOB = "more ranks, learner.cpu_offload, model.lora_rank"


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The size of a rank's largest micro-batch, or of its slice of one with context parallelism."""

    tokens: int
    """T."""
    targets: int
    """Completion tokens among them."""
    several: bool
    """Whether an update has several micro-batches a rank, so that gradients exist before the last one's forward pass."""


def ranks_of(config: Config) -> int:
    """R."""
    return config.learner_ranks


def largest_work(config: Config) -> Work:
    """The micro-batch that the recipe's lengths permit: all sequences of an update at the limits of prompt and completion."""
    longest = longest_sequence_tokens(config) - 1  # the last token is only predicted
    of_update = config.mini_batch_size * config.rollout.n * longest
    a_rank = -(-of_update // ranks_of(config))
    budget, context = config.learner.max_tokens_per_micro_batch, config.learner.context_parallel_size
    tokens = max(-(-longest // context), min(budget, a_rank))
    # A slice may have completion tokens alone.
    share = config.data.max_response_length / longest if context == 1 else 1.0
    return Work(tokens=tokens, targets=min(tokens, round(tokens * share)), several=a_rank > budget)


def rank_memory(
    shape: ModelShape, config: Config, *, work: Work | None = None, packed_kernel: bool | None = None
) -> Estimate:
    """One rank's memory at its peak, by what uses it.

    work: default is the recipe's largest micro-batch. packed_kernel: whether flash attention over packed sequences computes;
    by default in bfloat16, as on CUDA.
    """
    memory = _Rank(shape, config, work or largest_work(config), packed_kernel)
    moments = (memory.at_head(), memory.in_backward(), memory.at_end())
    peak = max(moments, key=lambda parts: sum(part.size_bytes for part in parts))
    ranks = ranks_of(config)
    title = f"learner, each of {ranks} ranks" if ranks > 1 else "learner, its rank"
    if (context := config.learner.context_parallel_size) > 1:
        title += f", {context} of them a micro-batch"
    return Estimate(title=title, parts=kept((*memory.states(), *peak)))


def trained_parameters(shape: ModelShape, config: Config) -> int:
    """The parameters that have gradients and moments: all, or those of the adapters."""
    rank = config.model.lora_rank
    return shape.adapter_parameters(rank, config.model.target_modules) if rank else shape.parameters


def state_bytes(shape: ModelShape, config: Config) -> Mapping[str, int]:
    """Bytes over all ranks of weights, moments and gradients."""
    trained = trained_parameters(shape, config)
    frozen = shape.parameters if config.model.lora_rank else 0
    return {
        "weights": _FLOAT32 * (frozen + trained),
        "moments": 2 * _FLOAT32 * trained,
        "gradients": _FLOAT32 * trained,
    }


class _Rank:
    """The parts of one rank's memory."""

    def __init__(self, shape: ModelShape, config: Config, work: Work, packed_kernel: bool | None) -> None:
        self._shape, self._config, self._work = shape, config, work
        self._ranks = ranks_of(config)
        self._context = config.learner.context_parallel_size
        self._element = BYTES[config.model.dtype]
        self._packed = config.model.dtype == "bfloat16" if packed_kernel is None else packed_kernel
        self._whole = not config.model.lora_rank
        """Whether embedding, head and layers are trained, not adapters alone."""

    def states(self) -> Iterator[Part]:
        if self._config.learner.cpu_offload:
            return
        share = "" if self._ranks == 1 else f", 1/{self._ranks}"
        sizes = {name: -(-size // self._ranks) for name, size in state_bytes(self._shape, self._config).items()}
        yield Part(name=f"weights, float32{share}", size_bytes=sizes["weights"], knob=_STATE_KNOB)
        yield Part(name=f"AdamW's two moments{share}", size_bytes=sizes["moments"], knob=_STATE_KNOB)

    def _gradients(self, *, there: bool) -> Part:
        """The gradients that earlier micro-batches of the update have left, or all of them at its end."""
        share = "" if self._ranks == 1 else f", 1/{self._ranks}"
        there = there and not self._config.learner.cpu_offload
        size = -(-state_bytes(self._shape, self._config)["gradients"] // self._ranks) if there else 0
        return Part(name=f"gradients, float32{share}", size_bytes=size, knob=_STATE_KNOB)

    def at_head(self) -> tuple[Part, ...]:
        """While the last chunk of the head is computed: logits, log-softmax, and the head's whole gradient in float32."""
        learner, b = self._config.learner, self._element
        tokens = min(logprob_chunk_tokens(self._config, device_type="cuda"), self._work.targets)
        chunk = tokens * self._shape.vocabulary
        in_float32 = learner.fp32_lm_head and b < _FLOAT32
        vocabulary_matrix = self._shape.embedding
        gradient = _FLOAT32 * vocabulary_matrix * (1 + in_float32) if self._whole else 0
        half = b * (chunk + (vocabulary_matrix if self._whole else 0)) if b < _FLOAT32 and not in_float32 else 0
        logits = max(2 * _FLOAT32 * chunk, _FLOAT32 * chunk + half)
        states = 2 * (_FLOAT32 if learner.fp32_lm_head else b) * self._work.targets * self._shape.hidden
        return (
            *self._kept(),
            Part(name="the head's hidden states and gradient", size_bytes=states + gradient, knob="model.lora_rank"),
            Part(
                name=f"logits of {tokens:,} tokens x vocabulary",
                size_bytes=logits,
                knob="learner.logprob_chunk_tokens",
            ),
        )

    def in_backward(self) -> tuple[Part, ...]:
        """While the last layer computes its gradients: the head's gradient waits to be added to the embedding's."""
        shape, tokens, b = self._shape, self._work.tokens, self._element
        again = self._layer_bytes() * tokens if self._config.learner.gradient_checkpointing else 0
        flowing = activations.backward_bytes(shape, element=b) * tokens
        head = b * shape.embedding if self._whole else 0
        return (
            *self._kept(),
            Part(
                name=f"one layer's {'activations again and ' if again else ''}gradients",
                size_bytes=again + flowing,
                knob="learner.max_tokens_per_micro_batch",
            ),
            Part(name="one layer's weights, gathered", size_bytes=self._gathered(shape.largest_layer)),
            Part(
                name="gradients on their way to the shards",
                size_bytes=head + self._reduced(shape.largest_layer),
                knob="model.lora_rank",
            ),
        )

    def at_end(self) -> tuple[Part, ...]:
        """When all layers are done: the gradients of embedding and head are summed over ranks."""
        shape = self._shape
        every = () if self._config.learner.reshard_after_forward else (self._gathered_layers(),)
        return (
            self._gradients(there=True),
            *every,
            Part(
                name="gradients of embedding and head on their way to the shards",
                size_bytes=self._reduced(shape.root),
                knob="model.lora_rank",
            ),
        )

    def _kept(self) -> tuple[Part, ...]:
        """What every micro-batch has from its forward to its backward pass."""
        shape, tokens, b = self._shape, self._work.tokens, self._element
        checkpointing = self._config.learner.gradient_checkpointing
        a_layer = activations.checkpointed_bytes(shape, element=b) * len(shape.layers)
        a_token = (a_layer if checkpointing else self._layers_bytes()) + activations.model_bytes(shape, element=b)
        fits = tokens <= self._config.learner.max_tokens_per_micro_batch
        less = "learner.max_tokens_per_micro_batch" if fits else "learner.context_parallel_size"
        every = () if self._config.learner.reshard_after_forward else (self._gathered_layers(),)
        return (
            self._gradients(there=self._work.several),
            Part(
                name=f"activations of {tokens:,} tokens{', checkpointed' if checkpointing else ''}",
                size_bytes=a_token * tokens,
                knob=less if checkpointing else f"learner.gradient_checkpointing, {less}",
            ),
            self._root(),
            *every,
        )

    def _root(self) -> Part:
        return Part(
            name=f"embedding and head, {self._config.model.dtype}, gathered",
            size_bytes=self._element * self._shape.root,
        )

    def _gathered_layers(self) -> Part:
        parameters = self._shape.parameters - self._shape.root
        sums = _FLOAT32 * parameters if self._work.several and self._whole else 0
        return Part(
            name="all layers' weights and gradients, gathered",
            size_bytes=self._element * parameters + sums,
            knob="learner.reshard_after_forward",
        )

    def _gathered(self, parameters: int) -> int:
        """Bytes of a layer's whole weights, and with several ranks of the buffer in which they arrive."""
        if not self._config.learner.reshard_after_forward:
            return 0  # counted with all layers
        return self._element * parameters * (1 if self._ranks == 1 else 2)

    def _reduced(self, parameters: int) -> int:
        """Bytes of a module's whole gradients on their way: in `model.dtype`, copied to float32, summed over ranks."""
        if not self._whole:
            return 0
        copy = _FLOAT32 * parameters
        # With one rank torch divides the sum by 1 into a third copy.
        return max(self._element * parameters + copy, copy + (2 * copy if self._ranks == 1 else copy // self._ranks))

    def _layers_bytes(self) -> int:
        return sum(
            activations.layer_bytes(
                self._shape, layer, element=self._element, packed_kernel=self._packed, context=self._context
            )
            for layer in self._shape.layers
        )

    def _layer_bytes(self) -> int:
        return max(
            activations.layer_bytes(
                self._shape, layer, element=self._element, packed_kernel=self._packed, context=self._context
            )
            for layer in self._shape.layers
        )
