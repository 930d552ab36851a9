"""The token stream of one episode: what was sampled and what was observed. It only grows: no id in it ever changes.

Observed ids become part of the stream with the turn that follows them, so that a sample always ends with a sampled token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from services.coordinator.state.group import Sample, Span, Turn
from sluice.environments import Message, Score


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Continuation:
    """What follows a turn."""

    token_ids: np.ndarray
    """[N] int32: the observed ids up to and with the opening of the next turn; where rewritten, the whole new context."""
    rewritten: bool
    """Whether the template changed the history, so that a training sequence of its own begins."""


class TokenStream:
    """Turns, one after another: `add`, `answered`, `go_on`, and again `add`."""

    def __init__(self, prompt: np.ndarray) -> None:
        """`prompt`: [P] int32, with the opening of the first turn."""
        self._base = _ids(prompt)
        self._since = 0
        self._observed: np.ndarray | None = np.zeros(0, np.int32)
        self._rewritten = False
        self._token_ids, self._logprobs = np.zeros(0, np.int32), np.zeros(0, np.float32)
        self._spans: list[Span] = []
        self._turns: list[Turn] = []

    @property
    def context(self) -> np.ndarray:
        """[C] int32: the ids that the next turn is sampled after."""
        observed = np.zeros(0, np.int32) if self._observed is None else self._observed
        return np.concatenate([self._base, self._token_ids[self._since :], observed])

    @property
    def sampled_tokens(self) -> int:
        """Tokens sampled in all turns."""
        return sum(turn.end - turn.start for turn in self._turns)

    def add(self, sample: Sample, *, tools: Sequence[str] = (), seconds: float = 0.0) -> None:
        """Takes the one-turn sample of a rollout; `tools` names the tools that it called, `seconds` is its generation."""
        assert self._observed is not None, "a turn follows a turn without what lies between them"
        assert len(sample.token_ids), "a turn has a token"
        start = len(self._token_ids) + len(self._observed)
        turn = Turn(
            start=start,
            end=start + len(sample.token_ids),
            finish_reason=sample.finish_reason,
            rollout_id=sample.rollout_id,
            seed=sample.seed,
            text=sample.text,
            tools=tuple(tools),
            generated_s=seconds,
            context=self._base if self._rewritten else None,
        )
        silence = np.zeros(len(self._observed), np.float32)
        self._token_ids = np.concatenate([self._token_ids, self._observed, _ids(sample.token_ids)])
        self._logprobs = np.concatenate([self._logprobs, silence, sample.logprobs.astype(np.float32)])
        self._spans += [replace(span, start=span.start + start, end=span.end + start) for span in sample.spans]
        self._turns.append(turn)
        self._observed, self._rewritten = None, False

    def answered(self, messages: Sequence[Message], seconds: float) -> None:
        """Notes what the environment answered to the last turn, and how long it took."""
        self._turns[-1] = replace(self._turns[-1], answers=tuple(messages), answered_s=seconds)

    def go_on(self, continuation: Continuation) -> None:
        """Takes what the next turn follows."""
        assert self._observed is None, "only one continuation follows a turn"
        self._rewritten = continuation.rewritten
        if continuation.rewritten:
            self._base, self._since = _ids(continuation.token_ids), len(self._token_ids)
            self._observed = np.zeros(0, np.int32)
        else:
            self._observed = _ids(continuation.token_ids)

    def to_sample(self, index: int, finish_reason: str, score: Score | None) -> Sample:
        """The episode as one sample, up to and with its last turn."""
        last = self._turns[-1]
        return Sample(
            index=index,
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            spans=tuple(self._spans),
            finish_reason=finish_reason,
            text=last.text,
            rollout_id=last.rollout_id,
            seed=last.seed,
            turns=tuple(self._turns),
            score=score,
        )


def _ids(ids: np.ndarray) -> np.ndarray:
    """A copy that nobody can write to."""
    copy = np.array(ids, dtype=np.int32)
    copy.flags.writeable = False
    return copy
