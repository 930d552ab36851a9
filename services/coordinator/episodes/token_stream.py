"""The tokens of one episode: they are appended to and never changed. What is read of an episode is sampled or observed."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from services.coordinator.episodes.continuation import Continuation
from services.coordinator.state.group import Sample, Span, Turn
from sluice.environments import Message, Score


class TokenStream:
    """The prompt, and then turns of the policy with what was observed between them."""

    def __init__(self, prompt: np.ndarray) -> None:
        """prompt: [P] int32, with the opening of the policy's turn."""
        self._base = prompt
        """What stands before the completion tokens of the sequence under way: the prompt, or a rewritten history."""
        self._from = 0
        """The completion token with which that sequence began."""
        self._ids: list[np.ndarray] = []
        self._logprobs: list[np.ndarray] = []
        self._spans: list[Span] = []
        self._turns: list[Turn] = []
        self._length = 0
        self._rewritten: np.ndarray | None = None

    @property
    def context(self) -> np.ndarray:
        """int32: what the policy reads before the next turn."""
        completion = np.concatenate([np.zeros(0, np.int32), *self._ids])
        return np.concatenate([self._base, completion[self._from :]]).astype(np.int32)

    @property
    def sequence_tokens(self) -> int:
        """Tokens of the context."""
        return len(self._base) + self._length - self._from

    @property
    def sampled_tokens(self) -> int:
        """Tokens of all turns."""
        return sum(turn.end - turn.start for turn in self._turns)

    @property
    def observed_tokens(self) -> int:
        """Completion tokens that no turn has."""
        return self._length - self.sampled_tokens

    @property
    def turns(self) -> int:
        """Turns so far."""
        return len(self._turns)

    @property
    def oldest_version(self) -> int | None:
        """The number of the oldest version that sampled a token; None before the first turn."""
        return min((span.version.number for span in self._spans), default=None)

    def add(self, sample: Sample, *, tools: Sequence[str] = (), seconds: float = 0.0) -> None:
        """Takes a turn, which a rollout generated after `context`."""
        start = self._length
        self._append(sample.token_ids, sample.logprobs)
        self._spans += [replace(span, start=span.start + start, end=span.end + start) for span in sample.spans]
        self._turns.append(
            Turn(
                start=start,
                end=self._length,
                finish_reason=sample.finish_reason,
                rollout_id=sample.rollout_id,
                seed=sample.seed,
                text=sample.text,
                tools=tuple(tools),
                generated_s=seconds,
                context=self._rewritten,
            )
        )
        self._rewritten = None

    def answered(self, messages: Sequence[Message], seconds: float = 0.0) -> None:
        """Notes what the environment answered to the last turn."""
        self._turns[-1] = replace(self._turns[-1], answers=tuple(messages), answered_s=seconds)

    def go_on(self, continuation: Continuation) -> None:
        """Appends what is observed, or begins a sequence with a rewritten history."""
        if continuation.rewritten:
            self._base = self._rewritten = continuation.token_ids
            self._from = self._length
        else:
            self._append(continuation.token_ids, np.zeros(len(continuation.token_ids), np.float32))

    def to_sample(self, index: int, finish_reason: str, score: Score | None) -> Sample:
        """The episode so far; it ends with its last turn."""
        first, last = self._turns[0], self._turns[-1]
        return Sample(
            index=index,
            token_ids=np.concatenate(self._ids)[: last.end].astype(np.int32),
            logprobs=np.concatenate(self._logprobs)[: last.end].astype(np.float32),
            spans=_joined(self._spans),
            finish_reason=finish_reason,
            text=last.text,
            rollout_id=last.rollout_id,
            seed=first.seed,
            turns=tuple(self._turns),
            score=score,
        )

    def _append(self, ids: np.ndarray, logprobs: np.ndarray) -> None:
        self._ids.append(ids)
        self._logprobs.append(logprobs)
        self._length += len(ids)


def _joined(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Spans of one version that touch, made one."""
    joined: list[Span] = []
    for span in spans:
        if joined and joined[-1].version == span.version and joined[-1].end == span.start:
            joined[-1] = replace(joined[-1], end=span.end)
        else:
            joined.append(span)
    return tuple(joined)
