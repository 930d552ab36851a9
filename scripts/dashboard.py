"""Writes deploy/grafana/dashboards/sluice.json: the catalogue's metrics, laid out in rows, each panel with what it means.

A panel names metrics of the catalogue; its queries, unit and description follow from there. A test keeps the file so, and
holds that every metric of the catalogue is on it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sluice.telemetry.catalogue import metric_of
from sluice.telemetry.metric import Metric

FILE = Path(__file__).parent.parent / "deploy" / "grafana" / "dashboards" / "sluice.json"

_SOURCE = {"type": "prometheus", "uid": "prometheus"}
"""As deploy/grafana/provisioning/datasources/prometheus.yaml names it."""

_UNITS = {"fraction": "percentunit", "s": "s", "ms": "ms", "bytes": "bytes"}
"""Grafana's names of units; others are plain numbers."""

_COLUMNS, _WIDTH, _HEIGHT = 4, 6, 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One query of a panel."""

    expr: str
    legend: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel: metrics of the catalogue, or queries of its own about them."""

    title: str
    metrics: Sequence[str]
    queries: Sequence[Query] = ()
    """In place of the metrics themselves."""
    unit: str = ""
    """Grafana's; default: that of the first metric."""


def _terms(unit: str) -> list[str]:
    terms = ("live", "trained", "filtered", "stale", "surplus", "rollback", "failed", "abandoned")
    return [f"ledger/{term}_{unit}" for term in terms]


ROWS: Mapping[str, Sequence[Panel]] = {
    "Training": (
        Panel("Accuracy on held-out prompts", ("eval/avg_at_n", "eval/pass_at_n", "eval/maj_at_n", "eval/greedy")),
        Panel("Held-out episodes that call a tool", ("eval/tool_use",)),
        Panel(
            "Intervals on held-out prompts",
            [f"eval/{m}_at_n_{end}" for m in ("avg", "pass", "maj") for end in ("low", "high")],
        ),
        Panel("Evaluation sets", ("eval/set/*",)),
        Panel("Accuracy of generated samples", ("reward/generated_acc",)),
        Panel("Steps trained", ("run/trained_steps",)),
        Panel("Loss", ("loss/policy",)),
        Panel("Entropy", ("loss/entropy_nats",)),
        Panel("Gradient norm", ("loss/grad_norm",)),
        Panel("Learning rate", ("loss/lr",)),
        Panel("Updates", ("learner/updates", "learner/skipped_updates")),
    ),
    "Sampling and filter": (
        Panel("Acceptance", ("sampling/acceptance", "sampling/all_right_fraction", "sampling/all_wrong_fraction")),
        Panel(
            "Acceptance expected, prompts seen",
            (
                "sampling/predicted_acceptance",
                "sampling/coverage",
                "sampling/chosen_fraction",
                "sampling/calibration_error",
                "sampling/dropped_tokens_fraction",
            ),
        ),
        Panel("Generation batches a batch", ("sampling/gen_batches",)),
        Panel("Distinct completions of a group", ("sampling/unique_fraction",)),
        Panel("Response length", ("response/length_mean_tokens", "response/length_max_tokens")),
        Panel("Truncated", ("response/truncated_fraction",)),
        Panel("Groups by how they end", _terms("groups")),
        Panel("Tokens by how they end", [*_terms("tokens"), "ledger/lost_tokens"]),
        Panel("Tokens in the loss", ("learner/trained_tokens",)),
        Panel("Prompt tokens not computed again", ("learner/prompt_tokens_saved",)),
    ),
    "Episodes": (
        Panel("Turns of an episode", ("episode/turns_mean",)),
        Panel("Tool calls of an episode", ("episode/tool_calls_mean",)),
        Panel("Episodes that call a tool", ("episode/tool_use",)),
        Panel("Observed tokens of an episode", ("episode/observed_mean_tokens",)),
        Panel("Environment's answer to a turn", ("episode/environment_s",)),
        Panel("Episodes begun again", ("episode/restarts",)),
    ),
    "Staleness and off-policy": (
        Panel("Age trained", ("staleness/age_mean_steps", "staleness/age_max_steps", "staleness/bound_steps")),
        Panel(
            "KL of rollout and learner, k3, by age",
            ("mismatch/k3_nats", "mismatch/k3_age0_nats", "mismatch/k3_age1_nats", "mismatch/k3_age2plus_nats"),
        ),
        Panel(
            "KL of rollout and learner, k1, by age",
            ("mismatch/k1_nats", "mismatch/k1_age0_nats", "mismatch/k1_age1_nats", "mismatch/k1_age2plus_nats"),
        ),
        Panel("Effective sample size", ("mismatch/ess", "loss/lr_factor")),
        Panel("Log-probability difference", ("mismatch/abs_diff_mean", "mismatch/abs_diff_max")),
        Panel("Ratio before the step", ("mismatch/ratio_p50", "mismatch/ratio_p99")),
        Panel("Ratio in the loss", ("loss/ratio_mean", "loss/ratio_p50", "loss/ratio_p99", "loss/ratio_max")),
        Panel(
            "Clipped and masked tokens",
            (
                *("loss/clip_fraction_high", "loss/clip_fraction_low", "loss/clip_fraction_dual"),
                *("loss/is_truncated_fraction", "loss/rs_masked_fraction"),
            ),
        ),
    ),
    "Throughput and idle": (
        Panel("Where a step's time goes", ("step/wall_s", "learner/train_s", "learner/wait_s", "learner/publish_s")),
        Panel(
            "Learner idle",
            ("learner/wait_s", "step/wall_s"),
            (Query(expr='sluice_learner_wait_s{service="coordinator"} / sluice_step_wall_s', legend="idle"),),
            unit="percentunit",
        ),
        Panel(
            "Rollouts idle",
            ("rollout/running_samples",),
            (Query(expr="avg_over_time((sluice_rollout_running_samples == bool 0)[5m:10s])", legend="{{instance}}"),),
            unit="percentunit",
        ),
        Panel("Waiting now", ("learner/waiting_s", "run/idle_s")),
        Panel("Generated tokens/s", ("rollout/generated_tokens_per_s",)),
        Panel("Generated tokens/s by rollout", ("rollout/generated_tokens",)),
        Panel("Trained tokens/s", ("learner/tokens_per_s",)),
        Panel("Share of the learner's peak FLOP/s", ("learner/mfu", "learner/hfu")),
        Panel("Memory of a learner's rank", ("learner/peak_memory_bytes",)),
        Panel("Fullest KV cache", ("rollout/kv_use",)),
        Panel("Preempted samples", ("rollout/preemptions",)),
        Panel(
            "KV cache in use by rollout",
            ("rollout/kv_use",),
            (Query(expr='sluice_rollout_kv_use{service="rollout"}', legend="{{instance}}"),),
        ),
        Panel("Preempted samples/s by rollout", ("rollout/preempted_samples",)),
        Panel("Samples at once at most by rollout", ("rollout/limit_samples",)),
        Panel("Queue", ("queue/groups", "queue/in_flight_groups")),
    ),
    "Rewards": (
        Panel("Reward", ("reward/generated_mean", "reward/generated_raw_mean", "reward/trained_mean")),
        Panel("Parts of the score", ("reward/part/*",)),
        Panel("Overlong", ("reward/overlong_fraction",)),
        Panel("Overlong penalty", ("reward/overlong_penalty_mean",)),
        Panel("Not graded", ("reward/unparsed_fraction", "reward/timeout_fraction", "reward/error_fraction")),
        Panel("Graded samples/s", ("reward/ok", "reward/unparsed", "reward/timeout", "reward/error")),
    ),
    "Weights": (
        Panel("Push", ("weights/push_ms", "weights/receive_ms", "weights/stall_ms")),
        Panel("Relay", ("weights/relay_links", "weights/source_changes")),
        Panel("Bytes sent", ("weights/sent_bytes", "weights/dense_bytes")),
        Panel("Deltas", ("weights/deltas", "weights/rollouts_without_delta")),
        Panel("Stall by rollout", ("rollout/stall_ms",)),
        Panel("Version by rollout", ("rollout/version",)),
        Panel("Publishing", ("learner/gather_ms", "learner/pack_ms", "learner/digest_ms")),
    ),
    "Services": (
        Panel("Answering", (), (Query(expr='up{job=~"sluice-.*"}', legend="{{instance}}"),)),
        Panel("Rollouts and rewards", ("fleet/rollouts_ready", "fleet/rewards_ready")),
        Panel("Out of service", ("fleet/rollouts_quarantined", "fleet/services_lost")),
        Panel("Running samples", ("rollout/running_samples",)),
        Panel("Disk left", ("disk/free_bytes",)),
        Panel("Share of the disk left", ("disk/free_fraction",)),
        Panel("Ledger", ("ledger/closed", "ledger/admitted_groups", "ledger/received_tokens")),
        Panel(
            "Calls refused",
            [f"rpc/refused_{why}" for why in ("unauthenticated", "denied", "paced", "malformed", "slow")],
        ),
        Panel("Lines not taken by writers", ("logger/dropped_lines",)),
        Panel("Records without spans", ("traces/dropped_records",)),
    ),
}


def query_of(metric: Metric) -> Query:
    """A metric as it is; of a counter its rate. What two services show of a step is taken from the coordinator."""
    name = metric.prometheus_name
    short = metric.name.partition("/")[2]
    if metric.name.endswith("/*"):
        return Query(expr=f'{{__name__=~"{name}.+", service="coordinator"}}', legend="{{__name__}}")
    if metric.kind == "counter":
        return Query(expr=f"rate({name}[5m])", legend=f"{short} {{{{instance}}}}")
    if metric.source in ("learner", "coordinator"):
        return Query(expr=f'{name}{{service="coordinator"}}', legend=short)
    return Query(expr=name, legend="{{instance}}")


def dashboard() -> dict[str, Any]:
    """What Grafana reads."""
    return {
        "uid": "sluice",
        "title": "Sluice",
        "tags": ["sluice"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": []},
        "panels": list(_panels()),
    }


def _panels() -> Iterator[dict[str, Any]]:
    top, number = 0, 0
    for row, panels in ROWS.items():
        number += 1
        place = {"x": 0, "y": top, "w": _COLUMNS * _WIDTH, "h": 1}
        yield {"id": number, "type": "row", "title": row, "collapsed": False, "gridPos": place, "panels": []}
        top += 1
        for index, panel in enumerate(panels):
            number += 1
            line, column = divmod(index, _COLUMNS)
            place = {"x": column * _WIDTH, "y": top + line * _HEIGHT, "w": _WIDTH, "h": _HEIGHT}
            yield {"id": number, **_timeseries(panel), "gridPos": place}
        top += -(-len(panels) // _COLUMNS) * _HEIGHT


def _timeseries(panel: Panel) -> dict[str, Any]:
    metrics = [metric_of(name) for name in panel.metrics]
    queries = panel.queries or [query_of(metric) for metric in metrics]
    unit = panel.unit or (_UNITS.get(metrics[0].unit, "short") if metrics else "short")
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": "\n\n".join(
            f"`{metric.name}` [{metric.unit}]: {metric.meaning}. Healthy: {metric.healthy}. Otherwise: {metric.action}."
            for metric in metrics
        ),
        "datasource": _SOURCE,
        "targets": [
            {"refId": chr(ord("A") + place), "datasource": _SOURCE, "expr": query.expr, "legendFormat": query.legend}
            for place, query in enumerate(queries)
        ],
        "fieldConfig": {"defaults": {"unit": unit, "custom": {"lineWidth": 1, "spanNulls": True}}, "overrides": []},
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
    }


def render() -> str:
    """The file."""
    return json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
