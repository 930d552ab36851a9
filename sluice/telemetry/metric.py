"""One entry of the catalogue of metrics."""

from dataclasses import dataclass
from typing import Literal

Source = Literal["learner", "coordinator", "rollout", "reward", "every service"]
Kind = Literal["gauge", "counter"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One catalogue entry."""

    name: str
    """A name that ends in `/*` stands for all names with that prefix."""
    unit: str
    source: Source
    meaning: str
    healthy: str
    action: str = ""
    """What to do when the metric leaves the healthy range."""
    kind: Kind = "gauge"

    @property
    def prometheus_name(self) -> str:
        """The metric's name in Prometheus; for a pattern the prefix of the names."""
        return prometheus_name(self.name.removesuffix("*")) + ("_total" if self.kind == "counter" else "")


def prometheus_name(name: str) -> str:
    """`queue/groups` as `sluice_queue_groups`. Prometheus itself adds `_total` to counters."""
    return "sluice_" + name.replace("/", "_")


def entry(
    name: str, unit: str, source: Source, meaning: str, healthy: str, action: str = "", *, kind: Kind = "gauge"
) -> Metric:
    """A catalogue entry on few lines."""
    return Metric(name=name, unit=unit, source=source, meaning=meaning, healthy=healthy, action=action, kind=kind)
