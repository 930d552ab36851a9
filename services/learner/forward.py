"""Log-probabilities and entropies of packed sequences under the policy.

The [tokens, vocabulary] logits are the largest thing a step could hold. They are made in chunks of `chunk_tokens`, in
float32, and made again in the backward pass, so that never more than one chunk exists.

Letters: N packed tokens, M targets, C tokens of a chunk, V vocabulary, D hidden size.
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from services.learner.packing import Packed


class Policy(nn.Module):
    """A causal language model as a function from packed sequences to scores of their targets.

    One module around trunk and head, so that FSDP gathers the (tied) head's weight for both.
    """

    def __init__(self, causal_lm: PreTrainedModel, *, temperature: float, chunk_tokens: int) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self._temperature = temperature
        self._chunk_tokens = chunk_tokens

    def forward(self, packed: Packed) -> tuple[Tensor, Tensor]:
        """float32[M] log-probabilities (nats, with gradient) and float32[M] entropies (nats, without).

        Both are those of softmax(logits / temperature), the distribution that rollouts sample from.
        """
        trunk = self.causal_lm.base_model(
            input_ids=packed.input_ids, position_ids=packed.position_ids, blocks=packed.blocks, use_cache=False
        )
        hidden = trunk.last_hidden_state[0, packed.predictors]
        if len(hidden) <= self._chunk_tokens:
            return self._score(hidden, packed.targets)
        pieces = [
            checkpoint(self._score, h, y, use_reentrant=False, preserve_rng_state=False)
            for h, y in zip(hidden.split(self._chunk_tokens), packed.targets.split(self._chunk_tokens), strict=True)
        ]
        logprobs, entropies = zip(*pieces, strict=True)
        return torch.cat(logprobs), torch.cat(entropies)

    def _score(self, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """[C, D] hidden states and [C] token ids -> [C] log-probabilities and [C] entropies."""
        head = self.causal_lm.get_output_embeddings()
        assert head is not None
        logits = head(hidden).float() / self._temperature  # [C, V]
        normaliser = logits.logsumexp(-1)
        logprobs = logits.gather(-1, targets[:, None])[:, 0] - normaliser
        with torch.no_grad():  # last, because a chunk that is made again stops at what the gradient needs
            entropies = normaliser - (torch.exp(logits - normaliser[:, None]) * logits).sum(-1)
        return logprobs, entropies
