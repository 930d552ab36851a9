"""The policy as a function of packed sequences: their loss with its gradients, or their scores without.

Trunk and head stand in one module, so that FSDP gathers a tied head's weight once for both.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from services.learner.policy.head import Head
from services.learner.policy.packing import Packed


class Loss(Protocol):
    """What turns log-probabilities of one micro-batch into its part of the loss."""

    @property
    def wants_preview(self) -> bool:
        """Whether a token's loss depends on other tokens, so that all log-probabilities must be known first."""
        ...

    def preview(self, logprobs: Tensor) -> None:
        """All float32[M] log-probabilities, without gradient, before the first chunk is asked for."""
        ...

    def __call__(self, logprobs: Tensor, where: slice) -> Tensor:
        """The part of some targets as a scalar: float32[C] log-probabilities with gradient, and which targets they are."""
        ...


class Policy(nn.Module):
    """A causal language model without its logits. Log-probabilities are those of softmax(logits / temperature)."""

    def __init__(self, causal_lm: PreTrainedModel, head: Head) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self._head = head

    def forward(self, packed: Packed, loss: Loss | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """The loss of a micro-batch (a scalar with gradient), float32[M] log-probabilities and float32[M] entropies.

        Without a loss only the last two, which never carry a gradient; nats. Entropies cost next to nothing here and are
        always measured.
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
