"""The closing account of a run: RUN/summary.json for scripts, a table for people.

The keys of summary.json are part of the outside contract. A figure that does not exist (no evaluation, no step
trained) is null there and '–' in the table, never zero.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sluice.report.evaluations import by_set, change, headline
from sluice.report.figures import ABSENT, duration, fraction, number, quantity
from sluice.report.metrics import column, read_metrics
from sluice.run_dir.durable import write_synced
from sluice.run_dir.json_lines import JsonObject
from sluice.v1 import coordinator_pb2 as pb

SUMMARY_FILE = "summary.json"

_NOT_IN_GROUPS = frozenset({"generated_tokens", "trained_tokens", "lost_tokens", "tokens"})
"""Fields of the ledger that count tokens."""


def build_summary(
    *, status: pb.GetStatusResponse, run_dir: Path, wall_s: float, departures: Sequence[str]
) -> JsonObject:
    """The content of summary.json for a run that has ended; staleness comes from RUN/metrics.jsonl.

    `steps` counts trained steps and `versions` the versions that these steps made (version 0 is the base model). `wall_s`
    runs from the start of the run, `train_wall_s` from the first admitted group. `staleness` has the maximum and the mean
    over trained groups of the age of the group's oldest token, in steps. `accuracy.before` is the first evaluation and
    `accuracy.after` the last, null unless there are two: of the default set, or of the first set where there is no default
    one, which `accuracy.set` names. `accuracy.sets` has the same for each set of eval.sets. `departures` are the settings
    that depart from exact DAPO.
    """
    named = {name: ones for name, ones in by_set(status.evaluations).items() if name}
    return {
        "steps": status.step,
        "wall_s": wall_s,
        "train_wall_s": status.train_wall_s,
        "accuracy": {
            "set": shown[0].set if (shown := headline(status.evaluations)) else "",
            **change(shown),
            "sets": {name: change(ones) for name, ones in named.items()},
        },
        "tokens": _tokens(status.ledger),
        "groups": _groups(status.ledger),
        "staleness": _staleness(run_dir),
        "versions": status.version.number,
        "exact_dapo": not departures,
        "departures": list(departures),
    }


def write_summary(summary: JsonObject, *, run_dir: Path) -> Path:
    """Writes RUN/summary.json whole or not at all: a crash leaves the former file."""
    path = run_dir / SUMMARY_FILE
    write_synced(path, [json.dumps(summary, indent=2, allow_nan=False).encode(), b"\n"])
    return path


def print_summary(console: Console, *, status: pb.GetStatusResponse, summary: JsonObject, run_dir: Path) -> None:
    """The closing table: before and after, whether the ledger closed, where the files are."""
    console.print(_outcome(status))
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in account_lines(summary):
        table.add_row(name, value)
    table.add_row("files", Text(", ".join(_files(run_dir)) or ABSENT))
    table.add_row("in", Text(str(run_dir), overflow="fold"))
    console.print(table)


def _outcome(status: pb.GetStatusResponse) -> Text:
    state = pb.RunState.Name(status.state).removeprefix("RUN_STATE_").lower()
    style = "bold green" if status.state == pb.RUN_STATE_FINISHED else "bold red"
    return Text.assemble((state, style), f": {status.reason}" if status.reason else "")


def account_lines(summary: JsonObject) -> list[tuple[str, Text]]:
    """The account as names and what stands beside them."""
    staleness, tokens, groups = summary["staleness"], summary["tokens"], summary["groups"]
    wall, train_wall = duration(summary["wall_s"]), duration(summary["train_wall_s"])
    return [
        *_accuracy_lines(summary["accuracy"]),
        ("steps", Text(f"{summary['steps']} in {train_wall} ({wall} with start and evaluation)")),
        ("tokens", Text(_tokens_line(tokens))),
        ("age", Text(f"{number(_float(staleness['mean']), 2)} mean, {number(_float(staleness['max']))} max, in steps")),
        ("algorithm", Text(_algorithm(summary["departures"]))),
        ("groups", _ledger_line(groups)),
    ]


def _accuracy_lines(accuracy: JsonObject) -> list[tuple[str, Text]]:
    """avg@n, greedy and use of tools of the set that stands for the run, then avg@n of the other sets."""
    before, after, of = accuracy["before"], accuracy["after"], accuracy["set"] or "held-out"
    others = {name: one for name, one in accuracy["sets"].items() if name != accuracy["set"]}
    return [
        (f"{of} avg@{after['n'] or before['n'] or 'n'}", _change(before["avg"], after["avg"], after["avg_interval"])),
        (f"{of} greedy", _change(before["greedy"], after["greedy"])),
        *([(f"{of} tool use", _change(*used))] if any(used := [before["tool_use"], after["tool_use"]]) else []),
        *(
            (
                f"{name} avg@{one['before']['n']}",
                _change(one["before"]["avg"], one["after"]["avg"], one["after"]["avg_interval"]),
            )
            for name, one in others.items()
        ),
    ]


def _algorithm(departures: Sequence[str]) -> str:
    return f"not exact DAPO: {', '.join(departures)}" if departures else "exact DAPO"


def _tokens_line(tokens: JsonObject) -> str:
    without_signal = sum(count for term, count in tokens.items() if term.startswith("filtered_"))
    counts = {"trained": tokens["trained"], "without signal": without_signal, "lost": tokens.get("lost", 0)}
    counts["of others"] = tokens["generated"] - sum(counts.values())
    shown = (f", {quantity(count)} {what}" for what, count in counts.items() if count or what == "trained")
    return f"{quantity(tokens['generated'])} generated{''.join(shown)}"


def _ledger_line(groups: JsonObject) -> Text:
    filtered = sum(count for term, count in groups.items() if term.startswith("filtered_"))
    failed = sum(groups["failed"].values())
    others = {
        "stale": groups["stale"],
        "failed": failed,
        "surplus": groups["surplus"],
        "rolled back": groups["rollback"],
        "abandoned": groups["abandoned"],
    }
    counts = f"{groups['admitted']} admitted, {groups['trained']} trained, {filtered} without signal" + "".join(
        f", {count} {term}" for term, count in others.items() if count
    )
    verdict = ("ledger closed", "green") if groups["closed"] else ("LEDGER NOT CLOSED", "bold red")
    return Text.assemble(counts, "; ", verdict)


def _change(before: float | None, after: float | None, interval: Sequence[float] | None = None) -> Text:
    within = f" [{fraction(interval[0])}, {fraction(interval[1])}]" if interval else ""
    return Text.assemble(fraction(_float(before)), " → ", (fraction(_float(after)), "bold"), within)


def _files(run_dir: Path) -> list[str]:
    promised = (
        "model",
        "curves.png",
        "report.html",
        SUMMARY_FILE,
        "samples.jsonl",
        "metrics.jsonl",
        "evaluations",
        "config.yaml",
        "ledger",
        "logs",
    )
    return [name for name in promised if (run_dir / name).exists()]


def _groups(ledger: pb.Ledger) -> JsonObject:
    terms = (field.name for field in pb.Ledger.DESCRIPTOR.fields if field.name not in _NOT_IN_GROUPS)
    return {term: dict(ledger.failed) if term == "failed" else getattr(ledger, term) for term in terms}


def _tokens(ledger: pb.Ledger) -> JsonObject:
    """The ledger's terms in completion tokens, each `failed:REASON` apart; `generated` is the sum of all other terms."""
    terms = {term: ledger.tokens[term] for term in sorted(ledger.tokens)}
    return {"generated": ledger.generated_tokens, "trained": ledger.trained_tokens, **terms}


def _staleness(run_dir: Path) -> JsonObject:
    steps = read_metrics(run_dir).steps
    largest, mean = column(steps, "staleness/age_max_steps"), column(steps, "staleness/age_mean_steps")
    return {
        "max": _finite(float(np.nanmax(largest)) if np.isfinite(largest).any() else math.nan),
        "mean": _finite(float(np.nanmean(mean)) if np.isfinite(mean).any() else math.nan),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _float(value: float | None) -> float:
    return math.nan if value is None else value
