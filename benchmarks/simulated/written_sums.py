"""A task and a policy small enough to train in a second: sums written digit by digit, by a network with one hidden layer.

A prompt is two numbers of DIGITS digits. A completion has, from the right, each digit of the sum and the carry, a token each;
it is right when digits and last carry are. The policy sees the two digits, the token before, and whether a digit or a carry is
next, so an error early on leads the rest astray, as in a chain of thought. Log-probabilities are exact on both sides: what a
learner and a rollout disagree on is age alone.

Letters: B completions, T tokens of a completion (2 x DIGITS).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

DIGITS = 4
TOKENS = 2 * DIGITS
_SYMBOLS = 10
_HIDDEN = 48


class SumWriter(nn.Module):
    """Logits of the next token, from the place's two digits, the token before and whether a digit or a carry is next."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Embedding(_SYMBOLS, _HIDDEN), nn.Embedding(_SYMBOLS, _HIDDEN)
        self.before = nn.Embedding(2 * _SYMBOLS, _HIDDEN)
        self.out = nn.Linear(_HIDDEN, _SYMBOLS)

    def forward(self, prompts: Tensor, completions: Tensor) -> Tensor:
        """int64[B, 2, DIGITS], digits from the right, and int64[B, T] -> float32[B, T, 10] logits of each token."""
        before = torch.cat([torch.zeros_like(completions[:, :1]), completions[:, :-1]], 1)
        return self._logits(prompts.repeat_interleave(2, 2), before + _SYMBOLS * (torch.arange(TOKENS) % 2))

    def _logits(self, digits: Tensor, before: Tensor) -> Tensor:
        """int64[B, 2, n] and int64[B, n], the token before, + 10 where a carry is next -> float32[B, n, 10]."""
        return self.out(torch.tanh(self.first(digits[:, 0]) + self.second(digits[:, 1]) + self.before(before)))

    @torch.no_grad()
    def sample(self, prompts: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """int64[B, T] tokens at temperature 1, and float32[B, T] their log-probabilities."""
        before, tokens, logprobs = torch.zeros_like(prompts[:, 0, :1]), [], []
        for place in range(TOKENS):
            digits = prompts[:, :, place // 2, None]
            found = self._logits(digits, before + _SYMBOLS * (place % 2))[:, 0].log_softmax(-1)
            before = torch.multinomial(found.exp(), 1, generator=generator)
            tokens.append(before)
            logprobs.append(found.gather(1, before))
        return torch.cat(tokens, 1), torch.cat(logprobs, 1)


def logprobs_of(policy: SumWriter, prompts: Tensor, completions: Tensor) -> Tensor:
    """float32[B, T] nats, with gradient."""
    return policy(prompts, completions).log_softmax(-1).gather(2, completions[:, :, None])[:, :, 0]


def draw_prompts(count: int, generator: torch.Generator) -> Tensor:
    """int64[count, 2, DIGITS]."""
    return torch.randint(0, 10, (count, 2, DIGITS), generator=generator)


def right(prompts: Tensor, completions: Tensor) -> Tensor:
    """bool[B]: whether all digits and the last carry are those of the sum; carries on the way are the policy's own."""
    truth = _written(prompts)
    same = completions == truth
    return same[:, 0::2].all(1) & same[:, -1]


def warmed_up(*, steps: int, lr: float, seed: int = 0) -> SumWriter:
    """A policy that has seen some demonstrations, too few to write every sum."""
    torch.manual_seed(seed)
    policy, generator = SumWriter(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0)
    for _ in range(steps):
        prompts = draw_prompts(64, generator)
        truth = _written(prompts)
        loss = cross_entropy(policy(prompts, truth).flatten(0, 1), truth.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy


def _written(prompts: Tensor) -> Tensor:
    """int64[B, T]: digit and carry of each place."""
    tokens, carry = [], torch.zeros_like(prompts[:, 0, 0])
    for place in range(DIGITS):
        total = prompts[:, 0, place] + prompts[:, 1, place] + carry
        carry = total // 10
        tokens += [total % 10, carry]
    return torch.stack(tokens, 1)
