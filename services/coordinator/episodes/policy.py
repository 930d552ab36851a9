"""The port between an episode and who samples its turns: a group in training, or an evaluation."""

from typing import Protocol

import numpy as np

from services.coordinator.episodes.wanted_episode import OpenedPrompt
from services.coordinator.state.group import Sample


class BeginAgain(Exception):
    """The episode has to begin again, and the environment is not to blame; `reason` is the ledger term after `failed:`."""

    def __init__(self, *, reason: str, fault: str) -> None:
        super().__init__(fault)
        self.reason = reason


class Policy(Protocol):
    """Samples the turns of one episode, and keeps the account of its tries."""

    def begin(self) -> None:
        """The episode begins, or begins again."""
        ...

    def opened(self, prompt: OpenedPrompt) -> None:
        """The environment has opened the chat. Raises GroupFailed for a chat that differs from the group's."""
        ...

    def begun(self, prompt: OpenedPrompt) -> np.ndarray:
        """An agent has begun with a chat of its own; returns the ids of the group's prompt: of the chat that came first."""
        ...

    async def turn(self, context: np.ndarray, *, turn: int, max_tokens: int) -> Sample:
        """One turn after `context` [C] int32; a turn that fails is sampled again.

        Raises BeginAgain for an episode that could not be trained any more, GroupFailed when no try is left.
        """
        ...

    def lost(self, tokens: int) -> None:
        """Counts sampled tokens that are thrown away."""
        ...

    def failed(self, *, reason: str, fault: str) -> None:
        """Uses up a try. Raises GroupFailed when none is left."""
        ...
