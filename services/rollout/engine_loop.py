"""The thread that owns the engine, and the asyncio side's view of it.

    event loop --commands--> engine thread: between two steps takes every waiting command, then steps
    engine thread --call_soon_threadsafe--> event loop: finished samples, progress, answers

The thread blocks on the command queue while the engine is idle and never otherwise. Admission is bounded in samples
(`max_samples`), and so is the queue. An exception in the thread is the end of the engine: every running request and every
later call raises EngineFailed, and `failed` resolves, which the app turns into a non-zero exit.
"""

import asyncio
import contextvars
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import structlog

from services.rollout.concurrency import Concurrency
from services.rollout.engine import Engine, FinishedSample, FinishReason, RunningSample, SampleRequest
from sluice.errors import InvalidRequest, NotReady, Overloaded, SluiceError
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import Manifest

log = structlog.get_logger(__name__)

T = TypeVar("T")

InFlight = Literal["keep", "recompute", "finish", "abort"]
"""The ways to treat running samples when weights change (`weights.inflight`)."""

PROGRESS_INTERVAL_S = 1.0
"""The time between two reports on a running request: short enough to notice a hung engine, too long to cost anything."""


class EngineFailed(SluiceError):
    """The engine is lost; the process is about to end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The progress of one request."""

    tokens: int
    """Tokens so far of the request's samples that still run."""


Event = FinishedSample | Progress


class EngineLoop:
    """Made, started and used inside one event loop."""

    def __init__(self, engine: Engine, *, max_samples: int, concurrency: Concurrency | None = None) -> None:
        """`max_samples` bounds running and waiting samples together; `concurrency` sets the engine's limit after every step."""
        self.engine = engine
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Resolves only if the engine fails."""
        self.weights: Manifest | None = None
        """The manifest of the weights in use; None before the first push."""
        self.last_stall_ms = 0.0
        """How long the newest push kept the engine from generating."""
        self._most_kv_use: float | None = None
        self._max_samples, self._concurrency = max_samples, concurrency
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, asyncio.Queue[Event | EngineFailed]] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._begun_s: float | None = None
        """When the engine's thread began its present step or command; None while the thread waits for work."""
        self.loading_bytes = 0
        """The bytes of the change of weights that is under way; 0 between changes."""
        self._switches: list[Callable[[], None]] = []
        """Engine thread: changes of weights that wait for the running samples; several after a caller has left."""
        self._switch_at = 0.0
        """Engine thread: when waiting changes of weights stop waiting and abort running samples, in monotonic s."""
        self._held: list[SampleRequest] = []
        """Engine thread: requests that start after the waiting changes of weights."""
        context = contextvars.copy_context()  # carries the log lines' bound keys into the thread
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="engine", daemon=True)

    def serve_own(self, version: PolicyVersion) -> None:
        """Serves the weights that the engine has loaded with the model, as `version`; before `start`."""
        self.engine.version = version
        self.weights = Manifest(version=version, tensors=(), total_bytes=0, bucket_bytes=1, digest="")

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def running(self) -> int:
        """Samples running or waiting."""
        return len(self._streams)

    @property
    def busy_s(self) -> float:
        """How long the engine has been at its present step or change of weights; 0 while the engine is idle."""
        begun_s = self._begun_s
        return 0.0 if begun_s is None else time.monotonic() - begun_s

    def take_kv_use(self) -> float | None:
        """The largest share of the KV cache in use since the last call; None where the engine has no bounded cache."""
        most, self._most_kv_use = self._most_kv_use, None  # a step that ends in between may go uncounted
        return self.engine.kv_use if most is None else most

    async def generate(self, requests: Sequence[SampleRequest]) -> AsyncGenerator[Event]:
        """Draws the samples; yields each sample when the sample finishes, in any order, and progress in between.

        Leaving the iterator early aborts the unfinished samples. Raises NotReady while draining or before the first
        weights, Overloaded without room, InvalidRequest when a sample_id is running already, EngineFailed.
        """
        self._admit(requests)
        events: asyncio.Queue[Event | EngineFailed] = asyncio.Queue()
        pending = {request.sample_id for request in requests}
        self._streams |= dict.fromkeys(pending, events)
        self._idle.clear()
        self._commands.put(lambda: self._add(requests))
        try:
            while pending:
                event = await events.get()
                if isinstance(event, EngineFailed):
                    raise event
                if isinstance(event, FinishedSample):
                    pending.discard(event.sample_id)
                yield event
        finally:
            if pending:
                self._post_abort(pending)

    async def abort(self, sample_ids: Collection[str]) -> None:
        """Ends samples now; the samples come out of their streams with FinishReason.ABORT. Unknown ids are skipped."""
        known = [sample_id for sample_id in sample_ids if sample_id in self._streams]
        await self._call(lambda: self._abort(known))

    async def load_weights(
        self,
        manifest: Manifest,
        buffer: np.ndarray,
        *,
        inflight: InFlight,
        finish_s: float = 0.0,
        announced: Manifest | None = None,
    ) -> float:
        """Switches versions between two steps, even if the caller leaves; returns the stall in ms.

        Running samples keep their KV ("keep"), have their KV recomputed ("recompute"), are aborted ("abort"), or end first
        ("finish") and are aborted after `finish_s`, while new requests wait for the new version. `announced` is the
        learner's manifest where `manifest` is another one because adapters were merged here. Raises EngineFailed.
        """

        def load() -> float:
            if inflight == "abort":
                self._abort(self.engine.running.keys())
            started = time.monotonic()
            self.loading_bytes = manifest.total_bytes
            self.engine.load_weights(manifest, buffer, recompute_kv=inflight == "recompute")
            self.loading_bytes = 0
            self.weights = announced or manifest
            self.last_stall_ms = 1e3 * (time.monotonic() - started)
            return self.last_stall_ms

        return await self._call(load, once_idle_or_after_s=finish_s if inflight == "finish" else None)

    @property
    def version(self) -> PolicyVersion | None:
        """The version of the weights in use."""
        return None if self.weights is None else self.weights.version

    async def drain(self, *, timeout_s: float) -> list[str]:
        """Takes no more requests and waits for running samples; returns the ids of the samples aborted after `timeout_s`."""
        self._draining = True
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
            return []
        except TimeoutError:
            left = list(self._streams)
            await self.abort(left)
            return left

    def close(self) -> None:
        """Ends the thread after its running step and frees the engine."""
        self._commands.put(None)
        self._thread.join()

    # --- event loop side --------------------------------------------------------------------------------------

    def _admit(self, requests: Sequence[SampleRequest]) -> None:
        if self._draining:
            raise NotReady("this rollout is draining; generate elsewhere")
        if self.failed.done():
            raise EngineFailed("the engine has failed; this rollout is about to end")
        if self.version is None:
            raise NotReady("this rollout holds no weights of the run yet; push a version first")
        if duplicate := [request.sample_id for request in requests if request.sample_id in self._streams]:
            raise InvalidRequest(f"{duplicate[0]} is running already; a request_id is used once an attempt")
        if len(self._streams) + len(requests) > self._max_samples:
            raise Overloaded(f"{len(self._streams)} samples run or wait here, at most {self._max_samples} may")

    async def _call(self, function: Callable[[], T], *, once_idle_or_after_s: float | None = None) -> T:
        """Runs `function` in the engine thread between two steps, at once or when the engine is idle."""
        answer: asyncio.Future[T] = self._loop.create_future()

        def command() -> None:
            result = function()
            self._post(lambda: answer.done() or answer.set_result(result))

        if self.failed.done():
            raise EngineFailed("the engine has failed; this rollout is about to end")
        if once_idle_or_after_s is None:
            self._commands.put(command)
        else:
            until = time.monotonic() + once_idle_or_after_s
            self._commands.put(lambda: self._set_switch(command, until))
        await asyncio.wait((answer, self.failed), return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise EngineFailed("the engine failed during this call; this rollout is about to end")
        return answer.result()

    def _post_abort(self, sample_ids: Collection[str]) -> None:
        self._commands.put(lambda: self._abort(sample_ids))

    def _on_finished(self, finished: Sequence[FinishedSample]) -> None:
        for sample in finished:
            self._streams.pop(sample.sample_id).put_nowait(sample)
        if not self._streams:
            self._idle.set()

    def _on_progress(self, tokens: dict[str, int]) -> None:
        totals: dict[int, tuple[asyncio.Queue[Event | EngineFailed], int]] = {}
        for sample_id, count in tokens.items():
            if (events := self._streams.get(sample_id)) is not None:
                totals[id(events)] = (events, totals.get(id(events), (events, 0))[1] + count)
        for events, total in totals.values():
            events.put_nowait(Progress(tokens=total))

    def _on_failure(self, failure: EngineFailed) -> None:
        self.failed.set_result(None)
        for events in set(self._streams.values()):
            events.put_nowait(failure)

    # --- engine thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._step_until_closed()
            self.engine.close()
        except BaseException as error:  # after any error the engine's state is unknown and the process has to end
            log.critical("engine_failed", exc_info=error)
            failure = EngineFailed(f"the engine failed: {error!r}")
            self._post(lambda: self._on_failure(failure))

    def _step_until_closed(self) -> None:
        report_at = time.monotonic() + PROGRESS_INTERVAL_S
        while True:
            while not self.engine.running or not self._commands.empty():
                self._begun_s = None
                command = self._commands.get()
                if command is None:
                    return
                self._begun_s = time.monotonic()
                command()
                self._switch_if_due()
            self._begun_s = now_s = time.monotonic()
            self._deliver(self.engine.step())
            if (use := self.engine.kv_use) is not None:
                self._most_kv_use = max(self._most_kv_use or 0.0, use)
                self._pace(use)
            self._switch_if_due()
            if now_s > report_at:
                report_at = now_s + PROGRESS_INTERVAL_S
                tokens = {sample_id: len(sample.token_ids) for sample_id, sample in self.engine.running.items()}
                self._post(lambda tokens=tokens: self._on_progress(tokens))

    def _pace(self, use: float) -> None:
        if self._concurrency is not None:
            started = self.engine.started
            self.engine.limit = self._concurrency.after_step(
                use=use,
                running=started,
                waiting=len(self.engine.running) - started,
                preemptions=self.engine.preemptions,
            )

    def _add(self, requests: Sequence[SampleRequest]) -> None:
        if self._switches:
            self._held += requests
            return
        for request in requests:
            self.engine.add(request)

    def _abort(self, sample_ids: Collection[str]) -> None:
        chosen = set(sample_ids)
        never_started = [request for request in self._held if request.sample_id in chosen]
        self._held = [request for request in self._held if request.sample_id not in chosen]
        self._deliver(
            [
                *self.engine.abort(chosen),
                *(RunningSample(request, self.engine.version).finish(FinishReason.ABORT) for request in never_started),
            ]
        )

    def _set_switch(self, command: Callable[[], None], until: float) -> None:
        self._switch_at = min(until, self._switch_at) if self._switches else until
        self._switches.append(command)

    def _switch_if_due(self) -> None:
        if not self._switches:
            return
        if self.engine.running and time.monotonic() > self._switch_at:
            self._abort(self.engine.running.keys())
        if not self.engine.running:
            for command in self._switches:
                command()
            self._switches.clear()
            held, self._held = self._held, []
            self._add(held)

    def _deliver(self, finished: Sequence[FinishedSample]) -> None:
        if finished:
            self._post(lambda: self._on_finished(finished))

    def _post(self, callback: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(callback)
