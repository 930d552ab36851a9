"""The metrics of this rollout's Prometheus endpoint, refreshed with every heartbeat."""

from services.rollout.engine_loop import EngineLoop
from sluice.telemetry.prometheus import Exporter


class RolloutMetrics:
    """Gauges and counters of one rollout."""

    def __init__(self, exporter: Exporter, *, service: str) -> None:
        labels = {"service": service}
        self._running = exporter.gauge("rollout/running_samples").labels(**labels)
        self._version = exporter.gauge("rollout/version").labels(**labels)
        self._stall = exporter.gauge("rollout/stall_ms").labels(**labels)
        self._tokens = exporter.counter("rollout/generated_tokens").labels(**labels)
        self._preempted = exporter.counter("rollout/preempted_samples").labels(**labels)
        self._limit = exporter.gauge("rollout/limit_samples").labels(**labels)
        self._kv_use = exporter.gauge("rollout/kv_use").labels(**labels)
        self._counted_tokens = self._counted_preemptions = 0

    def refresh(self, loop: EngineLoop, *, kv_use: float | None, limit: int | None) -> None:
        """Takes the loop's present values, and the largest `kv_use` and `limit` since the last time; an engine without a
        bounded cache has 0, one with a fixed number of samples that number."""
        self._limit.set(limit or loop.engine.limit)
        self._kv_use.set(kv_use or 0.0)
        self._preempted.inc(loop.engine.preemptions - self._counted_preemptions)
        self._counted_preemptions = loop.engine.preemptions
        self._running.set(loop.running)
        self._version.set(-1 if loop.version is None else loop.version.number)
        self._stall.set(loop.last_stall_ms)
        generated = loop.engine.generated_tokens
        self._tokens.inc(generated - self._counted_tokens)
        self._counted_tokens = generated
