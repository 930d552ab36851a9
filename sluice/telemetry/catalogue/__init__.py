"""Every metric Sluice publishes, once: name, unit, who computes it, meaning, healthy range. A file a subject.

`metrics.jsonl`, `GetStatus.metrics`, Prometheus (name with `/` as `_`, prefix `sluice_`) and docs/metrics.md use these
names and no others. `python -m sluice.telemetry.catalogue` prints docs/metrics.md.
"""

from sluice.telemetry.catalogue.ability import ABILITY
from sluice.telemetry.catalogue.episodes import EPISODES
from sluice.telemetry.catalogue.flow import FLOW
from sluice.telemetry.catalogue.learner import LEARNER
from sluice.telemetry.catalogue.ledger import LEDGER
from sluice.telemetry.catalogue.live import LIVE
from sluice.telemetry.catalogue.loss import LOSS
from sluice.telemetry.catalogue.mismatch import MISMATCH
from sluice.telemetry.catalogue.sampling import SAMPLING
from sluice.telemetry.catalogue.weights import WEIGHTS
from sluice.telemetry.metric import Metric

OF_STEPS: tuple[Metric, ...] = (*ABILITY, *SAMPLING, *EPISODES, *FLOW, *LEDGER, *WEIGHTS, *LOSS, *MISMATCH, *LEARNER)
"""The metrics of steps in the order of the page: the metrics to look at first stand first."""

CATALOGUE: tuple[Metric, ...] = (*OF_STEPS, *LIVE)

NAMES: frozenset[str] = frozenset(metric.name for metric in CATALOGUE)

_BY_NAME = {metric.name: metric for metric in CATALOGUE}


def metric_of(name: str) -> Metric:
    """The entry of a metric, or of the pattern that matches its name. Raises KeyError for a name without an entry."""
    above = name
    while above := above.rpartition("/")[0]:
        if (pattern := _BY_NAME.get(f"{above}/*")) is not None:
            return pattern
    return _BY_NAME[name]
