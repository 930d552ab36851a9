"""The port to an inference engine: requests go in, finished samples come out of `step`, weights change between steps.

An engine is synchronous and owned by one thread (services.rollout.engine_loop); it knows nothing of gRPC, groups or
transfers. Every implementation passes tests/contract/test_engine_contract.py.
"""

import enum
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import Manifest


class FinishReason(enum.Enum):
    """Why a completion ended."""

    STOP = "stop"
    """An end token was sampled; it is the last of token_ids."""
    LENGTH = "length"
    """max_tokens was reached: the completion is truncated."""
    ABORT = "abort"
    """Somebody asked for it; the tokens so far are there."""
    ERROR = "error"
    """The engine failed on this request alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """One completion to draw. Prompt and max_tokens together fit the engine's context; the servicer checked that."""

    sample_id: str
    """Unique among running requests."""
    prompt_token_ids: tuple[int, ...]
    seed: int
    """>= 0, of this sample alone."""
    temperature: float
    """Divides the logits; 0 is greedy. No other truncation or penalty exists."""
    max_tokens: int
    """Longest completion, end token included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """Which version sampled tokens [start, end)."""

    version: PolicyVersion
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedSample:
    """One completion and its facts; T tokens."""

    sample_id: str
    token_ids: np.ndarray = field(repr=False)
    """int32[T]."""
    logprobs: np.ndarray = field(repr=False)
    """float32[T], nats: log-softmax of logits / temperature (greedy: of the logits) at the sampled tokens."""
    spans: tuple[Span, ...]
    """Cover [0, T) without gaps, oldest first; empty when T is 0."""
    finish_reason: FinishReason


@dataclass(slots=True)
class RunningSample:
    """What an engine keeps of a request while it runs: its tokens, and from where on which version sampled them."""

    request: SampleRequest
    version: PolicyVersion | None
    """The version at the time of the request."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    _earlier: list[tuple[PolicyVersion | None, int]] = field(default_factory=list)
    """(version, end) of spans that are complete."""

    def switch(self, version: PolicyVersion) -> None:
        """From the next token on, `version` samples."""
        if self.token_ids:
            self._earlier.append((self.version, len(self.token_ids)))
        self.version = version

    def finish(self, reason: FinishReason) -> FinishedSample:
        """The completion as it is now."""
        spans, start = [], 0
        for version, end in (*self._earlier, (self.version, len(self.token_ids))):
            assert version is not None, "the engine loop admits no request before the first weights"
            if end > start:
                spans.append(Span(version=version, start=start, end=end))
            start = end
        return FinishedSample(
            sample_id=self.request.sample_id,
            token_ids=np.array(self.token_ids, np.int32),
            logprobs=np.array(self.logprobs, np.float32),
            spans=tuple(spans),
            finish_reason=reason,
        )


class Engine(Protocol):
    """An inference engine. All methods are called by the one thread that owns it."""

    name: str
    """Implementation, its version and the device: "vllm 0.32.0 on cpu"."""
    max_model_len: int
    """Context length in tokens."""
    capacity: int
    """Samples it runs at once; more may be added and wait inside."""
    version: PolicyVersion | None
    """Of the weights in use; None before the first `load_weights`."""
    generated_tokens: int
    """Since the engine was made."""

    @property
    def running(self) -> Mapping[str, RunningSample]:
        """Requests that were added and have not finished, by sample_id."""
        ...

    def add(self, request: SampleRequest) -> None:
        """Queues a request; it starts at the next step that has room."""
        ...

    def step(self) -> list[FinishedSample]:
        """Advances the running requests by one token each and returns those that ended."""
        ...

    def abort(self, sample_ids: Collection[str]) -> list[FinishedSample]:
        """Ends requests now and returns what they have; unknown ids are skipped."""
        ...

    def load_weights(self, manifest: Manifest, buffer: np.ndarray, *, recompute_kv: bool) -> None:
        """Switches to the version in `buffer` (uint8[total_bytes], read only during the call).

        The manifest names tensors of the model; those it does not name stay as they are. Requests that have started
        keep their KV or, with `recompute_kv`, have prompt and completion so far computed again; those that have not
        start afresh, so no prefix computed under an older version reaches them. An exception leaves mixed weights: the
        engine is lost.
        """
        ...

    def close(self) -> None:
        """Frees everything; running requests are lost."""
        ...
