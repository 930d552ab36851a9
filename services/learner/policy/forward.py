"""The policy as a function of packed sequences: a loss with gradients, or log-probabilities and entropies alone.

Trunk and head are one module, so that FSDP gathers a tied head's weight once for both.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from services.learner.distributed.context_group import ALONE, ContextGroup
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
    """A causal language model that never holds all logits. Log-probabilities are of softmax(logits / temperature).

    Computes as in evaluation, without any dropout: a log-probability has one value.
    """

    def __init__(
        self,
        causal_lm: PreTrainedModel,
        head: Head,
        *,
        rows: bool = False,
        shares: bool = False,
        context: ContextGroup = ALONE,
    ) -> None:
        """rows: lay out one sequence a row, padded on the right, for a model that has to have its own attention.

        shares: whether the samples of a group may share the group's prompt. context: the ranks that compute a micro-batch
        together; each calls the policy with its slice (`sliced`), all at once.
        """
        super().__init__()
        self.causal_lm = causal_lm
        self.rows = rows
        self.shares = shares
        self.context = context
        self._head = head
        _as_in_evaluation(causal_lm)

    def forward(self, packed: Packed, loss: Loss | None) -> tuple[Tensor | None, Tensor, Tensor]:
        """The loss of a micro-batch (a scalar with gradient), float32[M] log-probabilities and float32[M] entropies.

        Without `loss` the first is None. Log-probabilities and entropies are in nats and never carry a gradient. Entropies
        cost next to nothing here and are always measured.
        """
        with torch.set_grad_enabled(loss is not None):
            hidden = (self._row_states(packed) if self.rows else self._packed_states(packed))[packed.predictors]
        weight = self._head_weight()
        if loss is None:
            return None, *self._head.score(hidden, weight, packed.targets)
        if loss.wants_preview:
            logprobs, _ = self._head.score(hidden, weight, packed.targets)
            loss.preview(logprobs)
        return self._head.loss(hidden, weight, packed.targets, loss)

    def _packed_states(self, packed: Packed) -> Tensor:
        """[N, D] last hidden states. Layers with a state take the sequences' bounds by the names that kernels have."""
        layout = packed.layout
        trunk = self.causal_lm.base_model(
            input_ids=packed.input_ids,
            position_ids=packed.position_ids,
            layout=layout,
            part=packed.part,
            seq_idx=layout.sequence_ids[None],
            cu_seq_lens_q=layout.boundaries,
            cu_seq_lens_k=layout.boundaries,
            max_length_q=layout.longest,
            max_length_k=layout.longest,
            use_cache=False,
        )
        return trunk.last_hidden_state[0]

    def _row_states(self, packed: Packed) -> Tensor:
        """[N, D] last hidden states. Padding stands after the real tokens, so nothing that looks back alone sees it."""
        block = packed.layout.rectangle
        input_ids = packed.input_ids[0, block.gather].unflatten(0, (block.sequences, -1))
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        trunk = self.causal_lm.base_model(input_ids=input_ids, position_ids=positions, use_cache=False)
        return trunk.last_hidden_state.flatten(0, 1)[block.scatter]

    def _head_weight(self) -> Tensor:
        head = self.causal_lm.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        assert head.bias is None
        return head.weight


def _as_in_evaluation(causal_lm: PreTrainedModel) -> None:
    """Evaluation mode, but for the mark by which transformers' layers know that they may be computed again."""
    causal_lm.eval()
    for module in causal_lm.modules():
        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = (
                True  # of the layer alone; functional dropout in it has been set to zero (model_config.py)
            )
