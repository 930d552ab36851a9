"""The policy as a function of packed sequences: a loss with gradients, or log-probabilities and entropies alone.

Trunk and head are one module, so that FSDP gathers a tied head's weight once for both.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.learner.policy.head import Head
from services.learner.policy.packing import Packed


class Loss(Protocol):
    """A function from log-probabilities of one micro-batch to the micro-batch's part of the loss."""

    @property
    def wants_preview(self) -> bool:
        """Whether a token's loss depends on other tokens, so that all log-probabilities must be known first."""
        ...

    def preview(self, logprobs: Tensor) -> None:
        """Takes all float32[M] log-probabilities, without gradient, before the call for the first chunk."""
        ...

    def __call__(self, logprobs: Tensor, where: slice) -> Tensor:
        """The loss of the targets `where` as a scalar, from float32[C] log-probabilities with gradient."""
        ...


class Policy(nn.Module):
    """A causal language model that never holds all logits. Log-probabilities are of softmax(logits / temperature)."""

    def __init__(self, causal_lm: PreTrainedModel, head: Head) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self._head = head

    def forward(self, packed: Packed, loss: Loss | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """The loss of a micro-batch (a scalar with gradient), float32[M] log-probabilities and float32[M] entropies.

        Without `loss` the first is None. Log-probabilities and entropies are in nats and never carry a gradient. Entropies
        cost next to nothing here and are always measured.
        """
        with torch.set_grad_enabled(loss is not None):
            trunk = self.causal_lm.base_model(
                input_ids=packed.input_ids,
                position_ids=packed.position_ids,
                layout=packed.layout,
                use_cache=False,
            )
            hidden = trunk.last_hidden_state[0, packed.predictors]
        weight = self._head_weight()
        if loss is None:
            return None, *self._head.score(hidden, weight, packed.targets)
        if loss.wants_preview:
            logprobs, _ = self._head.score(hidden, weight, packed.targets)
            loss.preview(logprobs)
        return self._head.loss(hidden, weight, packed.targets, loss)

    def _head_weight(self) -> Tensor:
        head = self.causal_lm.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        assert head.bias is None
        return head.weight
