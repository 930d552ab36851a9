"""The trace of one evaluation, a trace of its own: below its root a span for each drawing of a prompt, below that its calls.

`telemetry.trace_sample` takes a share of the drawings, as of the groups; the root stands in every evaluation.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from services.coordinator.state.evaluation_result import EvaluationResult
from services.coordinator.state.ports import Sampling
from services.coordinator.state.step_traces import StepTraces
from sluice.config.evaluation_sets import EvaluationSet
from sluice.policy_version import PolicyVersion
from sluice.telemetry.traces.context import TraceContext, new_trace
from sluice.telemetry.traces.span import Value
from sluice.telemetry.traces.tracer import Tracer


class EvaluationTrace:
    """The trace of the present evaluation; there is one evaluation at a time."""

    def __init__(self, tracer: Tracer, steps: StepTraces) -> None:
        self._tracer, self._steps = tracer, steps
        self._root: TraceContext | None = None
        self._noted: dict[str, Value] = {}
        self._links: list[TraceContext] = []

    @contextmanager
    def whole(self, settings: EvaluationSet, *, prompts: int, n: int) -> Iterator[None]:
        """The evaluation from its wait for a rollout to its result."""
        self._root, self._links = new_trace() if self._tracer.on else None, []
        about: dict[str, Value] = {
            "sluice.evaluation.set": settings.label,
            "sluice.evaluation.prompts": prompts,
            "gen_ai.request.choice.count": n,
            "gen_ai.request.temperature": settings.temperature,
            "gen_ai.request.top_p": settings.top_p,
        }
        span = self._tracer.span("sluice.evaluation", self._root, attributes=about, links=self._links, carried=False)
        with span as self._noted:
            yield

    def pinned(self, rollout: str, version: PolicyVersion) -> None:
        """Notes which rollout draws the samples now; the last one stands where an earlier one failed."""
        self._noted |= {"sluice.rollout": rollout, "sluice.policy.version": version.number}
        step = self._steps.of(version.number)
        self._links[:] = () if step is None else (step,)

    def found(self, result: EvaluationResult) -> None:
        """How well the version does."""
        self._noted |= {"sluice.acc_mean": result.avg_at_n, "sluice.evaluation.ungraded": result.ungraded}

    @contextmanager
    def prompt(self, request_id: str, prompt_id: str, *, n: int, sampling: Sampling) -> Iterator[None]:
        """One prompt from its wait for room to its grades; calls within are below it."""
        root = self._root
        place = root.child() if root is not None and self._tracer.trace_of(request_id) else None
        about: dict[str, Value] = {
            "sluice.prompt.id": prompt_id,
            "gen_ai.request.choice.count": n,
            "gen_ai.request.temperature": sampling.temperature,
        }
        with self._tracer.span("sluice.evaluation.prompt", place, parent=root, attributes=about):
            yield
