"""Whether the samples of a group share the group's prompt in this run: the configuration and the model decide, then a check.

The proof at load (policy/proof.py) has shown that the model allows it, with short sequences. At the first use, and whenever
sequences are longer than any that were checked, both forms compute the log-probabilities of the same samples with the run's
own weights; where they differ, the run goes on without sharing, and the log says so.
"""

import structlog
import torch
from torch import Tensor

from services.learner.distributed.ranks import Ranks

log = structlog.get_logger(__name__)

FLOAT32_NATS = 1e-3
"""Largest difference of one log-probability in float32, as in the proof at load."""

HALF_NATS = 0.05
"""Mean difference in half precision. Measured in bfloat16 on a CPU with two small models: .002 and .006 nats between the
forms, .4 and 1.5 with wrong positions."""


class PromptSharing:
    """One rank's view; every rank decides alike."""

    def __init__(self, *, active: bool, dtype: torch.dtype, ranks: Ranks) -> None:
        self.active = active
        """Whether steps are planned with shared prompts."""
        self._half = dtype != torch.float32
        self._ranks = ranks
        self._checked_tokens = 0

    def is_checked(self, tokens: int) -> bool:
        """Whether both forms have been compared with sequences of this length."""
        return tokens <= self._checked_tokens

    def settle(self, tokens: int, plain: Tensor, shared: Tensor) -> None:
        """Compares float32[M] nats of both forms, of samples with up to `tokens` tokens. Collective."""
        limit = HALF_NATS if self._half else FLOAT32_NATS
        differences = (plain - shared).abs()
        found = 0.0
        if len(differences):  # a rank may have no sample
            found = float(differences.mean() if self._half else differences.max())
        if self._ranks.agree(found <= limit):
            self._checked_tokens = tokens
            return
        self.active = False
        log.warning(
            "prompts_not_shared",
            difference_nats=found,
            allowed_nats=limit,
            longest_sequence_tokens=tokens,
            effect="the prompt of a group is computed for each sample from now on",
        )
