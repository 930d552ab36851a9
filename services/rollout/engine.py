"""The port to an inference engine: requests go in, finished samples come out of `step`, weights change between steps.

An engine is synchronous and owned by one thread (services.rollout.engine_loop). An engine knows nothing of gRPC, groups or
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
    """An end token was sampled; the end token is the last of token_ids."""
    LENGTH = "length"
    """max_tokens was reached: the completion is truncated."""
    ABORT = "abort"
    """A caller aborted the sample; the sample has the tokens so far."""
    ERROR = "error"
    """The engine failed on this request alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleRequest:
    """One completion to draw. The servicer has checked that prompt and max_tokens together fit the engine's context."""

    sample_id: str
    """Unique among running requests."""
    prompt_token_ids: tuple[int, ...]
    seed: int
    """The seed of this sample alone, >= 0."""
    temperature: float
    """Divides the logits; 0 is greedy. No penalty exists, and no truncation but `top_p`."""
    max_tokens: int
    """Longest completion, end token included."""
    top_p: float = 1.0
    """Nucleus mass in (0, 1]: tokens come from the fewest most likely ones that together have this mass. Below 1 in
    evaluations alone; greedy samples do not depend on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """The version that sampled tokens [start, end)."""

    version: PolicyVersion
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class FinishedSample:
    """One completion of T tokens, with its facts."""

    sample_id: str
    token_ids: np.ndarray = field(repr=False)
    """int32[T]."""
    logprobs: np.ndarray = field(repr=False)
    """float32[T], nats: log-softmax of logits / temperature (greedy: of the logits) at the sampled tokens, within the nucleus
    where `top_p` is below 1."""
    spans: tuple[Span, ...]
    """The spans cover [0, T) without gaps, oldest first; empty when T is 0."""
    finish_reason: FinishReason


@dataclass(slots=True)
class RunningSample:
    """An engine's record of a running request: its tokens, and which version sampled which of the tokens."""

    request: SampleRequest
    version: PolicyVersion | None
    """The version at the time of the request."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    _earlier: list[tuple[PolicyVersion | None, int]] = field(default_factory=list)
    """(version, end) of the completed spans."""

    def switch(self, version: PolicyVersion) -> None:
        """Notes that `version` samples from the next token on."""
        if self.token_ids:
            self._earlier.append((self.version, len(self.token_ids)))
        self.version = version

    def finish(self, reason: FinishReason) -> FinishedSample:
        """The completion with the tokens so far."""
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
    """An inference engine. The one thread that owns the engine calls all methods."""

    name: str
    """Implementation, version and device: "vllm 0.32.0 on cpu"."""
    max_model_len: int
    """Context length in tokens."""
    capacity: int
    """Samples that the engine has room for at once; more samples may be added and wait inside."""
    limit: int
    """Samples that the engine runs at once now, 1 to `capacity`; set between two steps. What runs goes on when it falls."""
    version: PolicyVersion | None
    """The version of the weights in use; None before the first `load_weights`."""
    generated_tokens: int
    """Tokens generated since the engine was made."""
    kv_use: float | None
    """The share of the KV cache in use after the newest step, 0 to 1; None for an engine without a bounded cache."""
    preemptions: int
    """Samples put back since the engine was made because the KV cache was full; they are computed again later."""

    @property
    def running(self) -> Mapping[str, RunningSample]:
        """Added and unfinished requests, by sample_id."""
        ...

    @property
    def started(self) -> int:
        """The requests of `running` that run and do not wait."""
        ...

    def add(self, request: SampleRequest) -> None:
        """Queues a request, which starts at the next step that has room."""
        ...

    def step(self) -> list[FinishedSample]:
        """Advances each running request by one token and returns the samples that ended."""
        ...

    def abort(self, sample_ids: Collection[str]) -> list[FinishedSample]:
        """Ends requests now and returns their samples so far; unknown ids are skipped."""
        ...

    def load_weights(self, manifest: Manifest, buffer: np.ndarray, *, recompute_kv: bool) -> None:
        """Switches to the version in `buffer` (uint8[total_bytes], read only during the call).

        The manifest names tensors of the model; the other tensors keep their values. Requests that have started keep their
        KV or, with `recompute_kv`, have prompt and completion so far computed again. Requests that have not started start
        afresh, so that no prefix computed under an older version reaches these requests. An exception leaves mixed
        weights: the engine is lost.
        """
        ...

    def close(self) -> None:
        """Frees everything; running requests are lost."""
        ...
