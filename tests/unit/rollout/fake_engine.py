"""An engine without a model: token t of a sample is t, and each step can be held at a gate."""

import threading
from collections.abc import Collection, Mapping

import numpy as np

from services.rollout.engine import FinishedSample, FinishReason, RunningSample, SampleRequest
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import Manifest


class FakeEngine:
    """See services.rollout.engine.Engine."""

    name = "fake 1"
    max_model_len = 64
    capacity = 8
    limit = 8

    def __init__(self) -> None:
        self.version: PolicyVersion | None = None
        self.generated_tokens = 0
        self.kv_use: float | None = None
        self.preemptions = 0
        self.closed = False
        self.broken: Exception | None = None
        self.gate = threading.Event()
        """Steps wait for it."""
        self.gate.set()
        self._running: dict[str, RunningSample] = {}

    @property
    def running(self) -> Mapping[str, RunningSample]:
        return self._running

    @property
    def started(self) -> int:
        return min(self.limit, len(self._running))

    def add(self, request: SampleRequest) -> None:
        self._running[request.sample_id] = RunningSample(request, self.version)

    def step(self) -> list[FinishedSample]:
        assert self.gate.wait(5.0)
        if self.broken is not None:
            raise self.broken
        for sample in self._running.values():
            sample.token_ids.append(len(sample.token_ids))
            sample.logprobs.append(-1.0)
        self.generated_tokens += len(self._running)
        ended = [name for name, sample in self._running.items() if len(sample.token_ids) >= sample.request.max_tokens]
        return [self._running.pop(name).finish(FinishReason.LENGTH) for name in ended]

    def abort(self, sample_ids: Collection[str]) -> list[FinishedSample]:
        return [self._running.pop(name).finish(FinishReason.ABORT) for name in sample_ids if name in self._running]

    def load_weights(self, manifest: Manifest, buffer: np.ndarray, *, recompute_kv: bool) -> None:
        if self.broken is not None:
            raise self.broken
        self.version = manifest.version
        for sample in self._running.values():
            sample.switch(manifest.version)

    def close(self) -> None:
        self.closed = True
