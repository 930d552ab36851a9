"""The result of scoring again, as a page for people and as JSON for scripts. Pure."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from services.reward.rescore.score_comparison import ChangedSample, Comparison, Judged
from sluice.report.figures import number, printable
from sluice.report.group_page import aligned

EXAMPLES = 3
"""Samples shown for each change of verdict."""

_GROUPS_NAMED = 8
_ANSWER_CHARACTERS = 60


def page(comparison: Comparison, *, run_dir: Path, steps: Sequence[int], missing: Counter[str]) -> str:
    """The page, lines joined by newlines; `missing` counts the groups without texts by ledger term."""
    sections = [
        list(_coverage(comparison, run_dir, steps, missing)),
        aligned(list(_graders(comparison)), right=(1,)),
        aligned(list(_means(comparison)), right=(1, 2)),
        list(_verdicts(comparison)),
        list(_groups(comparison)),
    ]
    return printable("\n\n".join("\n".join(lines) for lines in sections if lines))


def as_json(comparison: Comparison, *, run_dir: Path, steps: Sequence[int], missing: Counter[str]) -> dict[str, Any]:
    """The page's figures, with every sample and every group that changed."""
    return {
        "run_dir": str(run_dir),
        "steps": list(steps),
        "groups": comparison.groups,
        "samples": comparison.samples,
        "not_covered": dict(missing),
        "graders": {"before": dict(comparison.graders_before), "after": dict(comparison.graders_after)},
        "graded_twice": comparison.graded_twice,
        "means": {name: {"before": was, "after": now} for name, (was, now) in comparison.means().items()},
        "verdicts": _pairs(comparison.verdicts),
        "same_verdict_other_score": comparison.rescored_alone,
        "dynamic_sampling": _pairs(comparison.terms),
        "changed_samples": [
            {
                "step": one.step,
                "group_id": one.group_id,
                "sample": one.sample,
                "ground_truth": one.ground_truth,
                "before": _judged(one.before),
                "after": _judged(one.after),
            }
            for one in comparison.changed_samples
        ],
        "changed_groups": [
            {"step": one.step, "group_id": one.group_id, "before": one.before, "after": one.after}
            for one in comparison.changed_groups
        ],
    }


def _coverage(comparison: Comparison, run_dir: Path, steps: Sequence[int], missing: Counter[str]) -> Iterator[str]:
    batches = f"batch {steps[0]}" if len(steps) == 1 else f"{len(steps)} batches, steps {steps[0]} to {steps[-1]}"
    yield f"{run_dir}: {comparison.samples} samples of {comparison.groups} groups scored again ({batches})"
    if missing:
        yield "not covered, no texts are kept of them: " + ", ".join(
            f"{count} {term}" for term, count in missing.most_common()
        )
    yield "texts are kept of groups that were handed to the learner, while a checkpoint can ask for their batch;"
    yield "which of the groups that were dropped would have been kept is therefore not known"


def _graders(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    yield ("graders", "samples", "")
    for when, graders in (("before", comparison.graders_before), ("after", comparison.graders_after)):
        for name, samples in graders.most_common():
            yield (f"  {when}", str(samples), name)


def _means(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    yield (f"means of {comparison.graded_twice} samples graded both times", "before", "after")
    for name, (was, now) in comparison.means().items():
        yield (f"  {name}", number(was, 4), number(now, 4))


def _verdicts(comparison: Comparison) -> Iterator[str]:
    changes = Counter({pair: count for pair, count in comparison.verdicts.items() if pair[0] != pair[1]})
    same = comparison.samples - changes.total()
    alone = f", {comparison.rescored_alone} of them with another score" if comparison.rescored_alone else ""
    yield f"verdicts: {changes.total()} of {comparison.samples} samples changed; {same} did not{alone}"
    for (before, after), count in changes.most_common():
        yield f"  {before} -> {after}: {count}"
        of_this = (
            one for one in comparison.changed_samples if (one.before.verdict, one.after.verdict) == (before, after)
        )
        yield from (f"    {_example(one)}" for one, _ in zip(of_this, range(EXAMPLES), strict=False))


def _example(one: ChangedSample) -> str:
    return (
        f"{one.group_id} sample {one.sample}: {_said(one.before)} -> {_said(one.after)}, ground truth "
        f"{_short(one.ground_truth)}"
    )


def _said(judged: Judged) -> str:
    return _short(judged.extracted if judged.graded else judged.detail)


def _short(text: str) -> str:
    """The text on one line, in quotes, cut in the middle, because answers differ at both ends."""
    half = _ANSWER_CHARACTERS // 2
    return repr(text if len(text) <= 2 * half else f"{text[:half]}...{text[-half:]}")


def _groups(comparison: Comparison) -> Iterator[str]:
    changed = comparison.changed_groups
    yield f"dynamic sampling: {len(changed)} of {comparison.groups} groups would have ended otherwise"
    by_change = sorted(changed, key=lambda one: (one.before, one.after))
    for (before, after), groups in groupby(by_change, key=lambda one: (one.before, one.after)):
        names = [one.group_id for one in groups]
        more = f" and {len(names) - _GROUPS_NAMED} more" if len(names) > _GROUPS_NAMED else ""
        yield f"  {before} -> {after}: {len(names)} ({', '.join(names[:_GROUPS_NAMED])}{more})"


def _pairs(counts: Counter[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"before": was, "after": now, "count": count} for (was, now), count in counts.most_common()]


def _judged(judged: Judged) -> dict[str, Any]:
    """A judgement as JSON, with null for NaN scores, because JSON has no NaN."""
    scores = ("raw_score", "acc", "shaped_reward")
    return {
        "verdict": judged.verdict,
        "status": judged.status,
        **{name: getattr(judged, name) if judged.graded else None for name in scores},
        "extracted": judged.extracted,
        "detail": judged.detail,
        "grader": judged.grader,
    }
