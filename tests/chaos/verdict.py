"""What must hold of a run directory when its run has finished, whatever was done to the run.

`problems` names everything that does not; an empty list is the promise of docs/delivery.md kept. It reads the files of
the run alone, so any test of a whole run can end with it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from services.coordinator.wire.messages import ZstdGroups
from sluice.config.load import load_config
from sluice.config.schema import Config
from sluice.lineage import is_older
from sluice.report.metrics import METRICS_FILE, surviving
from sluice.run_dir.batch_file import batch_path, payloads_of
from sluice.run_dir.json_lines import read_json_lines

_APPLIED = re.compile(r"weights_applied .*service=rollout .*version=([a-z]+)(\d+)")
_STARTED = re.compile(r"engine_ready ")
_TOLD_ONCE = "generated"
_REPAIRED = "repaired: "
"""Begins the fault of a group that Redis forgot and the learner's record brought back: of its life little is known."""
_QUARANTINED = re.compile(r"service_quarantined .*service_id=(\S+)")
_SPAN = re.compile(r"([a-z]+)(\d+):(\d+)-(\d+)")


def problems(run_dir: Path) -> list[str]:
    """What is wrong with a finished run, in plain words."""
    config = load_config(run_dir / "config.yaml")
    if not (run_dir / "summary.json").exists():
        return ["no summary.json: the run did not come to its end"]
    summary = json.loads((run_dir / "summary.json").read_text())
    rows = pq.read_table(run_dir / "ledger").to_pylist()
    return [
        *_books(config, summary, rows),
        *_rows(config, summary, rows),
        *_record(run_dir, config, rows),
        *_steps(run_dir, config),
        *_versions(run_dir, config, rows),
    ]


def quarantined(run_dir: Path) -> set[str]:
    """The services that got no work for a while because their answers failed, by the coordinator's log."""
    return set(_QUARANTINED.findall((run_dir / "logs" / "coordinator.log").read_text(errors="replace")))


def _books(config: Config, summary: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """The ledger's two sums, and the rows that stand behind them."""
    groups, tokens = summary["groups"], summary["tokens"]
    steps, per_step = config.run.total_steps, config.data.train_batch_size
    if summary["steps"] != steps:
        yield f"summary: {summary['steps']} of {steps} steps"
    if not groups["closed"]:
        yield f"summary: the ledger is not closed: {groups}"
    if groups["trained"] != steps * per_step:
        yield f"summary: {groups['trained']} groups trained, not {steps} x {per_step}"
    if live := {
        term: groups[term] for term in ("assigned", "queued", "scored", "in_flight", "pending") if groups[term]
    }:
        yield f"summary: groups that nobody has ended: {live}"
    terms = {term: count for term, count in tokens.items() if term != _TOLD_ONCE}
    if tokens[_TOLD_ONCE] != sum(terms.values()):
        yield f"summary: {tokens[_TOLD_ONCE]} tokens received, but {sum(terms.values())} accounted for: {terms}"
    counted = Counter(row["term"].split(":")[0] for row in rows)
    stated = {term: sum(count.values()) if isinstance(count, dict) else count for term, count in groups.items()}
    for term in counted.keys() | stated.keys() - {"admitted", "closed"}:
        if counted[term] != stated.get(term, 0):
            yield f"{term}: {counted[term]} rows in ledger/, {stated.get(term, 0)} groups in the summary"


def _rows(config: Config, summary: dict[str, Any], rows: list[dict[str, Any]]) -> Iterator[str]:
    """Every admission has one row, every step its groups, no token is too old."""
    twice = [name for name, count in Counter(row["group_id"] for row in rows).items() if count > 1]
    if twice:
        yield f"groups with several rows in ledger/: {sorted(twice)[:5]}"
    admissions = {row["admission"] for row in rows}
    if missing := set(range(summary["groups"]["admitted"])) - admissions:
        yield f"admissions without a row in ledger/: {sorted(missing)[:5]}"
    trained = Counter(row["step"] for row in rows if row["term"] == "trained")
    for step in range(config.run.total_steps):
        if trained[step] != config.data.train_batch_size:
            yield f"step {step}: {trained[step]} rows in ledger/, not {config.data.train_batch_size}"
    for row in rows:
        if row["term"] != "trained":
            continue
        if row["samples"] != config.rollout.n and not row["fault"].startswith(_REPAIRED):
            yield f"{row['group_id']}: trained with {row['samples']} samples, not {config.rollout.n}"
        age = row["step"] - row["oldest_version"]
        if not 0 <= age <= config.coordinator.max_staleness:
            yield f"{row['group_id']}: trained at age {age}"


def _record(run_dir: Path, config: Config, rows: list[dict[str, Any]]) -> Iterator[str]:
    """The learner's own record and the batch files say the same as the ledger."""
    booked = {row["group_id"]: row["step"] for row in rows if row["term"] == "trained"}
    told: dict[int, set[str]] = {}
    for state in sorted((run_dir / "checkpoints").glob("step-*/state.json")):
        for batch in json.loads(state.read_text())["trained"]:
            told[batch["step"]] = set(batch["group_ids"])
    last = config.run.total_steps
    if not (run_dir / "checkpoints" / f"step-{last}" / "state.json").exists():
        yield f"no checkpoint of step {last}"
    codec = ZstdGroups()
    for step in range(last):
        if (path := batch_path(run_dir, step)).exists():
            held = {codec.decode(payload).group_id for payload in payloads_of(path.read_bytes())}
            if held != told.setdefault(step, held):
                yield f"step {step}: its batch file and the learner's record name different groups"
    for step, ids in told.items():
        if ids != {name for name, at in booked.items() if at == step}:
            yield f"step {step}: the learner trained {sorted(ids)}, which is not what the ledger says"


def _steps(run_dir: Path, config: Config) -> Iterator[str]:
    """What is left of metrics.jsonl goes through the steps in order; one whose writer was killed may be there twice."""
    lines = read_json_lines(run_dir / METRICS_FILE).objects
    steps = [line for line in surviving(lines) if line["kind"] == "step"]
    numbers = [line["step"] for line in steps]
    if sorted(set(numbers)) != list(range(config.run.total_steps)):
        yield f"metrics.jsonl: steps {sorted(set(numbers))}, not 0 to {config.run.total_steps - 1}"
    if numbers != sorted(numbers):
        yield f"metrics.jsonl: steps go back: {numbers}"
    for line in steps:
        if line["staleness/age_max_steps"] > config.coordinator.max_staleness:
            yield f"metrics.jsonl: step {line['step']} has a token of age {line['staleness/age_max_steps']}"


def _versions(run_dir: Path, config: Config, rows: list[dict[str, Any]]) -> Iterator[str]:
    """Numbers grow within a sample, and within a rollout process from one rollback to the next."""
    for row in rows:
        for sample in row["completions"] or []:
            numbers = [int(span[1]) for span in _SPAN.findall(sample["versions"])]
            if numbers != sorted(numbers):
                yield f"{row['group_id']}: a sample's versions go back: {sample['versions']}"
            if row["term"] == "trained" and numbers and numbers[-1] > row["step"]:
                yield f"{row['group_id']}: trained in step {row['step']}, but sampled by version {numbers[-1]}"
    rolled_back = {made["lineage"] for made in read_json_lines(run_dir / "rollbacks.jsonl").objects}
    for log in (run_dir / "logs").glob("rollout-*.log"):
        lineage, held = "", -1
        for line in log.read_text(errors="replace").splitlines():
            if _STARTED.search(line):
                held = -1  # a new process
            elif found := _APPLIED.search(line):
                if int(found[2]) < held and not (found[1] in rolled_back and is_older(lineage, found[1])):
                    yield f"{log.name}: version {found[1]}{found[2]} applied after {lineage}{held}"
                lineage, held = found[1], int(found[2])
