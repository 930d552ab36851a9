"""How many samples an engine runs at once: as many as its KV cache will hold until they end. A pure function of what was seen.

A sample starts when the cache is expected to hold it and all that run, at every later moment. The tokens expected in the
cache t steps from now are

    M(t) = sum over samples i of  S(g_i + t) / S(g_i) * (h_i + t)

with h_i tokens held, g_i generated, and S the share of completions that are longer. S is the estimate of Kaplan and Meier
(1958) over the newest completions and those that still run, which count as "longer than so far": at the start of a batch only
short completions have ended. That the peak of M decides, and not the present use, is the "Past-Future" scheduler (Gong et al.
2025, arXiv:2507.10150, section 3); it draws lengths, here their expectation is taken. Samples that start together grow
together, and so fewer start than the empty cache would take; samples of all ages need no reserve.

Tokens become a share of the cache by the ratio of both seen now, so that shared prefixes, windows and the layout of blocks
need no model. The ceiling of the peak learns from preemptions: eq. 2 of Gibbs and Candes (2021, arXiv:2106.00170) with a
preemption as the error, so that PREEMPTED_SHARE of the samples is put back in the long run, whatever the estimate gets wrong.
Nothing that runs is ever stopped: a lower limit only starts fewer.
"""

from collections import deque
from typing import Final

import numpy as np

from services.rollout.cache_load import CacheLoad, Sequences

FIRST_SAMPLES: Final = 16
"""Samples that run before the cache was seen in use: one group of DAPO's size."""
WINDOW: Final = 512
"""Completions that are remembered. Chosen: a batch of 32 groups of 16, so that lengths of two steps ago are forgotten."""
PRIOR: Final = 8
"""Lengths, even over 0 to the longest, that stand in the memory before the first completions."""
FIRST_CEILING: Final = 0.9
LOWEST_CEILING: Final = 0.5
"""The band of the ceiling is LOWEST_CEILING to 1, so that half of the cache is used whatever happens."""
PREEMPTED_SHARE: Final = 0.15
"""Preemptions a completion that are aimed at: some 4 % of the tokens are computed again, at the cost of prompts. Measured with
fixed ceilings on a simulated cache of 65 samples, against the best fixed number: .8 has .002 preemptions a completion and .91
of the tokens/s, .9 has .08 and .97, .95 has .22 and 1.01, 1 has 1.8 and .99."""
STEP: Final = 0.002
"""How much lower the ceiling is after a preemption; a completion raises it by PREEMPTED_SHARE of that."""
MOMENTS: Final = 24
"""Moments at which the expected use is computed, from now to the end of the longest sample, each later by a factor."""


class Concurrency:
    """One engine's limit of samples at once."""

    def __init__(self, *, most_samples: int, most_tokens: int) -> None:
        """`most_samples` bounds the limit; `most_tokens` is the longest completion that is usual."""
        self._most_samples = most_samples
        self._lengths = deque(np.linspace(0, most_tokens, PRIOR + 1)[1:].astype(np.int64).tolist(), maxlen=WINDOW)
        self._share_a_token: float | None = None
        self._prompt_tokens = 0.0
        self._preemptions: int | None = None
        self._usual_most = most_tokens
        self.ceiling = FIRST_CEILING
        """The largest share of the cache that may be expected to be in use."""

    def ended(self, generated_tokens: int) -> None:
        """Takes the length of a completion that has ended by itself."""
        self._lengths.append(generated_tokens)
        self.ceiling = min(1.0, self.ceiling + STEP * PREEMPTED_SHARE)

    def limit(self, load: CacheLoad, *, preemptions: int) -> int:
        """How many samples may run at once now, 1 at least; `preemptions` counts those for want of room since the start."""
        lost = 0 if self._preemptions is None else max(0, preemptions - self._preemptions)
        self._preemptions = preemptions
        self.ceiling = max(LOWEST_CEILING, self.ceiling - STEP * lost)
        if load.computed_tokens > 0 and load.use > 0:
            self._share_a_token = load.use / load.computed_tokens
        if len(load.running):
            self._prompt_tokens = float((load.running.held_tokens - load.running.generated_tokens).mean())
        if self._share_a_token is None:
            return min(FIRST_SAMPLES, self._most_samples)
        fit = self._fit(load, room_tokens=self.ceiling / self._share_a_token)
        return max(1, min(self._most_samples, fit))

    def _fit(self, load: CacheLoad, *, room_tokens: float) -> int:
        """How many samples fit together: those that run, the oldest first, those that wait, and then usual new ones."""
        longest = max(self._usual_most, *(int(part.max_tokens.max(initial=0)) for part in (load.running, load.waiting)))
        moments = np.unique(np.concatenate(([0], np.geomspace(1, max(2, longest), MOMENTS - 1).astype(np.int64))))
        longer = _Longer(np.array(self._lengths, np.int64), still=load.running.generated_tokens)
        each = np.concatenate([longer.tokens(part, moments) for part in (load.running, load.waiting)])
        expected = each.cumsum(axis=0)
        fit = int((expected.max(axis=1, initial=0.0) <= room_tokens).sum())
        if fit < len(each):
            return fit
        new = Sequences(
            held_tokens=np.array([self._prompt_tokens]),
            generated_tokens=np.zeros(1, np.int64),
            max_tokens=np.array([self._usual_most]),
        )
        room = room_tokens - (expected[-1] if len(each) else 0.0)
        return fit + int((room / np.maximum(1.0, longer.tokens(new, moments)[0])).min())


class _Longer:
    """The share of completions that are longer than a length, by those that have ended and those that have not yet."""

    def __init__(self, ended: np.ndarray, *, still: np.ndarray) -> None:
        """ended, still: int64[E] and int64[R] tokens."""
        tokens = np.concatenate((ended, still))
        has_ended = np.arange(len(tokens)) < len(ended)
        order = np.lexsort((~has_ended, tokens))  # of equal lengths those that ended come first
        at_risk = np.arange(len(tokens), 0, -1)
        self._tokens = tokens[order]
        self._shares = np.concatenate(([1.0], np.where(has_ended[order], 1.0 - 1.0 / at_risk, 1.0).cumprod()))

    def than(self, tokens: np.ndarray) -> np.ndarray:
        """The share of completions of more than `tokens`, in the shape of `tokens`."""
        return self._shares[np.searchsorted(self._tokens, tokens, side="right")]

    def tokens(self, samples: Sequences, moments: np.ndarray) -> np.ndarray:
        """float64[N, T]: tokens expected in the cache at each moment, which is steps from now.

        A completion longer than all that have ended is taken to double.
        """
        now = samples.generated_tokens[:, None]
        then = now + moments[None, :]
        share_now = self.than(now)
        known = share_now > 0
        alive = np.where(known, self.than(then) / np.where(known, share_now, 1.0), then < 2 * now)
        alive = np.where(then < samples.max_tokens[:, None], alive, 0.0)
        alive[:, 0] = 1.0
        return alive * (samples.held_tokens[:, None] + moments[None, :])
