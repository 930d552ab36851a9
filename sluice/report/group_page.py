"""One group's life as a page for people: the prompt, the attempts and their rollouts, the scores, the verdict, the step.

Made of the group's ledger row alone (columns: docs/ledger.md), of a live run or from the files; the caller fetches the
texts separately. Text from outside is shown unchanged but for control characters, which are made visible.
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sluice.config.schema import Config
from sluice.dapo.advantage import group_advantages, maxrl_advantages
from sluice.report.figures import ABSENT, number, printable
from sluice.report.group_texts import Texts
from sluice.report.turns import turn_lines

ACCEPTED = ("queued", "assigned", "trained")


def group_page(row: Mapping[str, Any], *, config: Config, texts: Texts | str | None = None) -> str:
    """The page, lines joined by newlines; a str as `texts` says why there are no texts."""
    sections = [
        [f"group {row['group_id']}: {_headline(row)}"],
        [f"  {_prompt_line(row)}", f"  {_admission_line(row)}", *_times(row)],
        _attempts(row),
        _samples(row, config),
        _parts(row),
        _episodes(row),
        [f"verdict: {_verdict(row, config)}", *_training(row, config)],
        [] if texts is None else _texts(texts),
    ]
    return printable("\n\n".join("\n".join(lines) for lines in sections if lines))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentences:
    """What the page says of a group in sentences."""

    headline: str
    prompt: str
    admission: str
    attempts: Sequence[str]
    verdict: str
    training: Sequence[str]


def sentences_of(row: Mapping[str, Any], *, config: Config) -> Sentences:
    """The sentences alone, for a page that shows the figures in its own way."""
    return Sentences(
        headline=printable(_headline(row)),
        prompt=printable(_prompt_line(row).partition(" ")[2].strip()),
        admission=printable(_admission_line(row).partition(" ")[2].strip()),
        attempts=[printable(_attempt(attempt)) for attempt in row.get("attempts") or ()],
        verdict=printable(_verdict(row, config)),
        training=[printable(line) for line in _training(row, config)],
    )


def _headline(row: Mapping[str, Any]) -> str:
    term, step = row["term"], row["step"]
    if term in ("trained", "assigned"):
        return f"{term} in step {step}" if term == "trained" else f"assigned to step {step}, which is not committed yet"
    ended = _when(row.get("ended_s"))
    return term.replace("_", " ") + (f" at {ended}" if ended else "")


def _prompt_line(row: Mapping[str, Any]) -> str:
    epoch, place = _known(row.get("prompt_epoch")), _known(row.get("prompt_row"))
    if place is None:
        where = "place in the data not recorded"
    elif epoch is None:
        where = f"number {place} of those submitted by users"
    else:
        where = f"row {place} of the data, epoch {epoch}"
    return f"prompt    {row.get('data_source') or 'source not recorded'}, {where} (id {row['prompt_id']}){_chance(row)}"


def _chance(row: Mapping[str, Any]) -> str:
    """What data.sampler: difficulty expected of the prompt; empty for other prompts."""
    predicted = row.get("predicted")
    if predicted is None or predicted < 0:
        return ""
    if row.get("chosen"):
        return f", taken for its chance of a signal, which was {predicted:.2f}"
    return f", taken in its turn; its chance of a signal was {predicted:.2f}"


def _admission_line(row: Mapping[str, Any]) -> str:
    when = _when(row.get("admitted_s"))
    if not when:
        return f"admitted  as number {row['admission']}; when was not recorded"
    return (
        f"admitted  {when} as number {row['admission']}, at rank {row['admitted_rank']} (live groups before it) while "
        f"batch {row['admitted_next_step']} was next"
    )


def _times(row: Mapping[str, Any]) -> list[str]:
    """How long grading, queue and batch took, and the trace; rows of older runs have neither."""
    edges = (
        ("graded", "grading_s", "graded_s"),
        ("queued", "queued_s", "assigned_s"),
        ("in its batch", "assigned_s", "ended_s"),
    )
    took = [
        f"{what} {number(row[end] - row[start], 2)} s"
        for what, start, end in edges
        if min(row.get(start) or -1.0, row.get(end) or -1.0) > 0
    ]
    lines = [f"  took      {', '.join(took)}"] if took else []
    return lines + ([f"  trace     {row['trace_id']}"] if row.get("trace_id") else [])


def _attempts(row: Mapping[str, Any]) -> list[str]:
    attempts = row.get("attempts")
    if attempts is None:
        return ["attempts: not recorded"]
    return ["attempts"] + ([f"  {_attempt(attempt)}" for attempt in attempts] or ["  none: it was never started"])


def _attempt(attempt: Mapping[str, Any]) -> str:
    if not attempt["number"]:
        return f"–  {_when(attempt['started_s'])}  {attempt['fault']}"
    open_ended = attempt["ended_s"] < 0
    took = "not over" if open_ended else f"{number(attempt['ended_s'] - attempt['started_s'], 2)} s"
    received = f"{attempt['samples']} of {attempt['asked']} samples, {attempt['tokens']} tokens"
    fault = f"; repeated or given up because: {attempt['fault']}" if attempt["fault"] else ""
    started = f"{_when(attempt['started_s'])}  {attempt['rollout']} at version {attempt['version']}"
    return f"{attempt['number']}  {started}, {took}: {received}{fault}"


def _samples(row: Mapping[str, Any], config: Config) -> list[str]:
    completions = row.get("completions")
    lost = row.get("lost_tokens")
    title = f"samples: {row['tokens']} tokens" + (f", and {lost} received and thrown away" if lost else "")
    if completions is None:
        return [f"{title}; one by one not recorded"]
    found = [ABSENT if one is None else f"{one:+.3f}" for one in advantages(row, config)]
    head = ("#", "tokens", "ended by", "raw", "acc", "overlong", "shaped", "advantage", "versions", "answer")
    lines: list[tuple[str, ...]] = [head]
    for completion, advantage in zip(completions, found, strict=True):
        graded = completion["raw_score"] is not None
        lines.append(
            (
                str(completion["sample"]),
                str(completion["tokens"]),
                completion["finish_reason"],
                *(_score(completion[name]) for name in ("raw_score", "acc", "overlong_penalty", "shaped_reward")),
                advantage,
                completion["versions"].replace(" ", ", "),
                _answer(completion) if graded else completion["detail"] or completion["status"] or "not graded",
            )
        )
    return [title, *(f"  {line}" for line in aligned(lines, right=range(8)))]


def _parts(row: Mapping[str, Any]) -> list[str]:
    """The names of the components of the scores, a column each; rows of older runs have no components."""
    completions = row.get("completions") or ()
    parts = {completion["sample"]: json.loads(completion.get("parts") or "{}") for completion in completions}
    names = sorted({name for named in parts.values() for name in named})
    if not names:
        return []
    lines = [("#", *names)]
    lines += [(str(sample), *(_score(named.get(name)) for name in names)) for sample, named in parts.items()]
    return [
        "parts of the raw scores, unweighted",
        *(f"  {line}" for line in aligned(lines, right=range(len(names) + 1))),
    ]


def _episodes(row: Mapping[str, Any]) -> list[str]:
    """Turns, tools and seconds of the samples that are episodes; rows of older runs have none."""
    episodes = [one for one in row.get("completions") or () if one.get("turns")]
    if not episodes:
        return []
    lines: list[tuple[str, ...]] = [("#", "turns", "observed", "generating", "environment", "tools called")]
    for one in episodes:
        seconds = (f"{number(one[name], 2)} s" for name in ("generated_s", "environment_s"))
        called = ", ".join(f"{name} x{times}" for name, times in json.loads(one["tools"] or "{}").items())
        lines.append((str(one["sample"]), str(one["turns"]), str(one["observed_tokens"]), *seconds, called or ABSENT))
    return [
        "episodes: turns of the policy, tokens observed beside the sampled ones, seconds",
        *(f"  {line}" for line in aligned(lines, right=range(5))),
    ]


def _answer(completion: Mapping[str, Any]) -> str:
    found = completion["extracted"].replace("\n", "\\n")
    return found if completion["status"] == "ok" else f"{found or ABSENT} ({completion['status']})"


def advantages(row: Mapping[str, Any], config: Config) -> list[float | None]:
    """Of each completion of a group that the learner takes, as the learner has it; None in every other group."""
    maxrl = config.algorithm.adv_estimator == "maxrl"
    scores = [completion["acc" if maxrl else "shaped_reward"] for completion in row.get("completions") or ()]
    if row["term"] not in ACCEPTED or not scores or None in scores:
        return [None] * len(scores)
    if maxrl:
        return maxrl_advantages(np.array(scores)).tolist()
    return group_advantages(np.array(scores), norm_by_std=config.algorithm.norm_adv_by_std_in_grpo).tolist()


def _verdict(row: Mapping[str, Any], config: Config) -> str:
    term, filters = row["term"], config.algorithm.filter_groups
    if term.startswith("failed:"):
        return f"none, it failed ({term.removeprefix('failed:')}): {row.get('fault') or 'why was not recorded'}"
    if term in ("abandoned", "rollback") and not _was_graded(row):
        return f"none, the run {'ended' if term == 'abandoned' else 'was rolled back'} before it had one"
    metric = filters.metric
    kept = (
        f"kept, its samples differ in {metric} (dynamic sampling)" if filters.enable else "kept, no group is filtered"
    )
    then = {
        "stale": f"then too old: its oldest token is of version {row['oldest_version']}, and coordinator.max_staleness is "
        f"{config.coordinator.max_staleness}",
        "surplus": "then not needed: the batches that could train it were full without it",
        "rollback": "then the run was rolled back",
        "abandoned": "then the run ended",
    }
    if term in then:
        return f"{kept}; {then[term]}"
    return {
        "pending": "not yet, it waits for a rollout that may start it",
        "in_flight": "not yet, it is being generated or scored",
        "scored": "being recorded",
        "filtered_all_right": "dropped, every sample is right: none is better than the others (dynamic sampling)",
        "filtered_all_wrong": "dropped, every sample is wrong: none is better than the others (dynamic sampling)",
        "filtered_other": f"dropped, every sample has the same {metric} (dynamic sampling)",
    }.get(term, kept)


def _was_graded(row: Mapping[str, Any]) -> bool:
    completions = row.get("completions") or ()
    return bool(completions) and all(completion["raw_score"] is not None for completion in completions)


def _training(row: Mapping[str, Any], config: Config) -> list[str]:
    step, oldest, bound = row["step"], _known(row["oldest_version"]), config.coordinator.max_staleness
    lines = []
    if step >= 0:
        is_over = {"trained": "trained", "rollback": "assigned or trained, then rolled back"}.get(
            row["term"], "to be trained"
        )
        age = (
            "its age is not recorded"
            if oldest is None
            else (f"its oldest token is of version {oldest}, age {step - oldest} of at most {bound} steps")
        )
        lines.append(f"{is_over}: step {step}, which makes version {step + 1}; {age}")
    if row.get("fault") and not row["term"].startswith("failed:"):
        lines.append(f"note: {row['fault']}")
    return lines


def _texts(texts: Texts | str) -> list[str]:
    if isinstance(texts, str):
        return [f"texts: {texts}"]
    lines = ["prompt text", *_indented(texts.prompt)]
    for place, completion in enumerate(texts.completions):
        turns = texts.episodes[place] if texts.episodes else ()
        lines += [f"completion {place}"]
        lines += [f"  {line}" for line in turn_lines(turns)] if turns else _indented(completion)
    return lines


def _indented(text: str) -> Iterator[str]:
    return (f"  {line}" for line in text.split("\n"))


def aligned(lines: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Columns two spaces apart; the columns in `right` are flush right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


def _score(value: float | None) -> str:
    return ABSENT if value is None else f"{value:g}"


def _known(value: int | None) -> int | None:
    return None if value is None or value < 0 else value


def _when(unix_s: float | None) -> str:
    """Local time; empty for an unknown time."""
    if unix_s is None or unix_s < 0:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_s))
