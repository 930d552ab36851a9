"""The language-model head fused with the loss: hidden states in, one loss out, never [tokens, vocabulary].

Logits are made chunk by chunk. Where a gradient is wanted, the chunk's loss is computed at once, so that the gradients with
respect to hidden states and head weight are made while the chunk's logits exist: three matrix products, as many as an
unchunked head needs, and nothing to compute again in the backward pass.

Letters: M targets, C tokens of a chunk, V vocabulary, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from services.learner.policy.matrix_products import add_product, product

ChunkLoss = Callable[[Tensor, slice], Tensor]
"""float32[C] log-probabilities (with gradient) and their places among the M targets -> a part of the loss, a scalar."""


class Head:
    """Log-probabilities from hidden states: log softmax(logits / temperature), logits = factor * hidden @ weight.T.

    With a `cap` c the logits are bent to c * tanh(logits / c), which needs a third buffer in training.
    """

    def __init__(
        self, *, temperature: float, chunk_tokens: int, float32: bool, factor: float = 1.0, cap: float | None = None
    ) -> None:
        """float32: multiply in float32 for any dtype of hidden states and weight; logits are float32 in any case."""
        self.temperature = temperature
        """The run's, without the model's `factor`."""
        self._factor = factor
        self._cap = cap
        self._chunk_tokens = chunk_tokens
        self._float32 = float32

    @torch.no_grad()
    def score(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """[M, D], [V, D] and int64[M] -> float32[M] log-probabilities and float32[M] entropies, both nats."""
        hidden, weight = self._operands(hidden, weight)
        logprobs, entropies = _empty(hidden), _empty(hidden)
        for where in self._chunks(len(targets)):
            logprobs[where], entropies[where], *_ = self._chunk(hidden[where], weight, targets[where])
        return logprobs, entropies

    def loss(
        self, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_loss: ChunkLoss
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The sum of `chunk_loss` over all chunks, a float32 scalar with gradient, and the two results of `score`.

        `chunk_loss` is called once a chunk, in order, and differentiated with respect to the log-probabilities.
        """
        return _FusedLoss.apply(hidden, weight, targets, chunk_loss, self)  # pyrefly: ignore[bad-return]

    def _operands(self, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return (hidden.float(), weight.float()) if self._float32 else (hidden, weight)

    def _chunks(self, tokens: int) -> list[slice]:
        return [slice(start, min(start + self._chunk_tokens, tokens)) for start in range(0, tokens, self._chunk_tokens)]

    def _chunk(self, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """[C] log-probabilities, [C] entropies, [C, V] float32 probabilities, and [C, V] tanh of capped logits.

        At most two [C, V] buffers exist, three with a cap.
        """
        logits = product(hidden, weight.T)
        bent = None if self._cap is None else torch.tanh(logits.mul_(self._factor / self._cap))
        if bent is not None:
            torch.mul(bent, self._cap or 1.0, out=logits)
        if (factor := (1.0 if bent is not None else self._factor) / self.temperature) != 1:
            logits *= factor
        log_probabilities = torch.log_softmax(logits, -1)
        probabilities = torch.exp(log_probabilities, out=logits)
        # A [1, V] @ [V, 1] product for each token: an elementwise product and a sum would make a third buffer.
        entropies = -torch.bmm(probabilities[:, None], log_probabilities[:, :, None])[:, 0, 0]
        return log_probabilities.gather(-1, targets[:, None])[:, 0], entropies, probabilities, bent

    def _logit_gradient(self, slopes: Tensor, targets: Tensor, probabilities: Tensor, bent: Tensor | None) -> Tensor:
        """d loss / d (hidden @ weight.T) = slope * factor / temperature * (onehot - p), into the probabilities' memory.

        With a cap times 1 - tanh^2, into the memory of `bent` too.
        """
        slopes = (slopes * self._factor / self.temperature)[:, None]
        gradient = probabilities.mul_(-slopes).scatter_add_(-1, targets[:, None], slopes)
        return gradient if bent is None else gradient.mul_(bent.square_().neg_().add_(1))


class _FusedLoss(torch.autograd.Function):
    """Makes all gradients in the forward pass, where the loss is known; the backward pass only scales these gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk_loss: ChunkLoss, head: Head
    ) -> tuple[Tensor, Tensor, Tensor]:
        train_trunk, train_head, *_ = ctx.needs_input_grad
        left, right = head._operands(hidden, weight)
        logprobs, entropies = _empty(left), _empty(left)
        total = torch.zeros((), device=hidden.device)
        hidden_gradient = torch.empty_like(left) if train_trunk else None
        weight_gradient = torch.zeros_like(right, dtype=torch.float32) if train_head else None
        for where in head._chunks(len(targets)):
            logprobs[where], entropies[where], probabilities, bent = head._chunk(left[where], right, targets[where])
            part, slopes = _slopes(logprobs[where], where, chunk_loss)
            total += part
            gradient = head._logit_gradient(slopes, targets[where], probabilities, bent).to(right.dtype)
            if hidden_gradient is not None:
                torch.mm(gradient, right, out=hidden_gradient[where])
            if weight_gradient is not None:
                add_product(weight_gradient, gradient.T, left[where])
            del probabilities, bent, gradient  # before the next chunk's logits are made
        ctx.save_for_backward(
            None if hidden_gradient is None else hidden_gradient.to(hidden.dtype),
            None if weight_gradient is None else weight_gradient.to(weight.dtype),
        )
        ctx.mark_non_differentiable(logprobs, entropies)
        return total, logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(  # pyrefly: ignore[bad-override]
        ctx: Any, scale: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        hidden, weight = (None if g is None else g.mul_(scale) for g in ctx.saved_tensors)
        return hidden, weight, None, None, None


def _slopes(logprobs: Tensor, where: slice, chunk_loss: ChunkLoss) -> tuple[Tensor, Tensor]:
    """The chunk's part of the loss and its [C] derivatives with respect to the log-probabilities."""
    with torch.enable_grad():
        leaf = logprobs.detach().requires_grad_()
        part = chunk_loss(leaf, where)
        (slopes,) = torch.autograd.grad(part, leaf)
    return part.detach(), slopes


def _empty(hidden: Tensor) -> Tensor:
    """float32[M] for one value a target."""
    return torch.empty(len(hidden), device=hidden.device)
