"""Prompt and completions of one group, while a payload, a batch file or samples.jsonl keeps the texts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sluice.report.sample_tokens import kept_group
from sluice.report.samples import read_samples
from sluice.report.turns import ShownTurn, shown_turns
from sluice.run_dir.batch_file import batch_path, payloads_of, poison_files
from sluice.run_dir.stored_group import StoredGroups
from sluice.v1 import common_pb2


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Prompt and completions of one group; the completions are in the order of the samples."""

    prompt: str
    completions: Sequence[str]
    episodes: Sequence[Sequence[ShownTurn]] = field(default=())
    """The turns of each completion, none of a single answer; empty: all are single answers."""


def texts_of(group: common_pb2.Group) -> Texts:
    """The texts in a group's payload."""
    return Texts(
        prompt=group.prompt.text,
        completions=[sample.text for sample in group.samples],
        episodes=[shown_turns(sample) for sample in group.samples],
    )


def texts_on_disk(run_dir: Path, *, group_id: str, step: int) -> Texts | str:
    """The group's texts from its batch file, else from samples.jsonl; a str says why there are no texts."""
    group = group_on_disk(run_dir, group_id=group_id, step=step)
    if group is not None:
        return texts_of(group)
    if step < 0:
        return "not on disk: only groups that were handed to the learner are written with their texts"
    for shown in read_samples(run_dir):
        if shown.group_id == group_id:
            return Texts(
                prompt=shown.prompt,
                completions=[sample.text for sample in shown.samples],
                episodes=[sample.turns for sample in shown.samples],
            )
    return (
        f"no longer on disk: {batch_path(run_dir, step)} was removed, since no checkpoint that is kept can ask for it, and "
        "samples.jsonl has another group of the step"
    )


def group_on_disk(run_dir: Path, *, group_id: str, step: int) -> common_pb2.Group | None:
    """The group with token ids and log-probabilities, from its batch file, else from sample_tokens.jsonl; None where neither
    has it.

    Raises DataError, ValueError for a damaged file.
    """
    path = batch_path(run_dir, step)
    stored = StoredGroups()
    # Batch files that a rollback has moved away; for a group without a step, batches on which the learner died.
    found = (path, *path.parent.glob(f"*/{path.name}")) if step >= 0 else poison_files(run_dir)
    for kept in found:
        for payload in payloads_of(kept.read_bytes()) if kept.exists() else ():
            group = stored.unpack(payload)
            if group.group_id == group_id:
                return group
    kept = kept_group(run_dir, group_id)
    return None if kept is None else kept.group
