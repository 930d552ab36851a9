"""docs/metrics.md: the catalogue as tables, metrics of a step before live metrics."""

from collections.abc import Iterable

from sluice.telemetry.catalogue import LIVE, OF_STEPS
from sluice.telemetry.metric import Metric

_HEADING = {
    "coordinator": "the coordinator",
    "rollout": "every rollout",
    "reward": "every reward service",
    "every service": "every service",
}
"""The sources of live metrics, in the order of the page, as a heading names them."""


def render_markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made by `python -m sluice.telemetry.catalogue > docs/metrics.md`; a test compares the two. How to watch metrics, and",
        "the alerts on them: [monitoring.md](monitoring.md). Prometheus has `queue/groups` as `sluice_queue_groups`, and a",
        "counter with `_total` at its end.",
        "",
    ]
    for source in ("coordinator", "learner"):
        lines += [f"## Of a step, from the {source}", "", *_table(m for m in OF_STEPS if m.source == source)]
    lines += ["## Of this moment, on the Prometheus endpoints only", ""]
    for source in _HEADING:
        lines += [f"### From {_HEADING[source]}", "", *_table(m for m in LIVE if m.source == source)]
    return "\n".join(lines)


def _table(metrics: Iterable[Metric]) -> list[str]:
    rows = [f"| `{m.name}` | {m.unit} | {m.meaning} | {m.healthy} | {m.action} |" for m in metrics]
    return ["| metric | unit | meaning | healthy | otherwise |", "|---|---|---|---|---|", *rows, ""]
