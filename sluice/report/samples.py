"""Shows a few completions of a run with their rewards, from RUN/samples.jsonl.

One JSON object a group: `{"group_id", "step", "prompt", "samples": [{"text", "raw_score", "shaped_reward", "acc",
"finish_reason", "tokens"}]}`; a sample that is an episode has "turns" too (turns.py). Reading completions shows what no curve
shows: a reward that is gamed, a wrong template, answers cut off. Text is never read as markup, and control characters are made
visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sluice.report.figures import printable
from sluice.report.metrics import SAMPLES_FILE
from sluice.report.turns import ShownTurn, turn_lines, turns_of
from sluice.run_dir.json_lines import JsonObject, read_json_lines


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownSample:
    """One completion with its scores."""

    text: str
    raw_score: float
    shaped_reward: float
    acc: float
    finish_reason: str
    tokens: int
    turns: tuple[ShownTurn, ...] = ()
    """Of an episode alone; `text` is the last turn's then."""


_SAMPLE_FIELDS = tuple(field.name for field in fields(ShownSample) if field.name != "turns")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownGroup:
    """One prompt and some or all of its completions."""

    group_id: str
    step: int
    prompt: str
    samples: tuple[ShownSample, ...]


def read_samples(run_dir: Path) -> tuple[ShownGroup, ...]:
    """The groups kept for people to read, oldest first; empty for a run without such groups yet.

    Raises:
        ValueError: a group lacks a field.
    """
    path = run_dir / SAMPLES_FILE
    return tuple(_group(path, record) for record in read_json_lines(path).objects)


def print_samples(console: Console, groups: Sequence[ShownGroup], *, groups_shown: int, samples_shown: int) -> None:
    """Prints groups spread evenly over the run, first and last included, with the first samples of each group."""
    if not groups:
        console.print("no samples were kept", style="dim")
    for group in spread(groups, groups_shown):
        console.print(_panel(group, samples_shown))


def _panel(group: ShownGroup, samples_shown: int) -> Panel:
    table = Table(box=None, padding=(0, 1, 0, 0), expand=True)
    for name in ("acc", "raw", "shaped", "tokens", "finish"):
        table.add_column(name, justify="right", no_wrap=True, style="dim")
    table.add_column("completion", ratio=1, overflow="fold")
    for sample in group.samples[:samples_shown]:
        table.add_row(
            Text(f"{sample.acc:g}", style="green" if sample.acc > 0 else "red"),
            f"{sample.raw_score:g}",
            f"{sample.shaped_reward:.3g}",
            str(sample.tokens),
            sample.finish_reason,
            _plain("\n".join(turn_lines(sample.turns)) if sample.turns else sample.text),
        )
    title = Text(f"step {group.step}  group {group.group_id}")
    return Panel(Group(_plain(group.prompt), "", table), title=title, title_align="left", border_style="dim")


def spread(groups: Sequence[ShownGroup], count: int) -> list[ShownGroup]:
    """So many groups, spread evenly over the run, first and last included."""
    if count >= len(groups):
        return list(groups)
    last = len(groups) - 1
    return [groups[round(place * last / max(1, count - 1))] for place in range(count)]


def _plain(text: str) -> Text:
    return Text(printable(text))


def _group(path: Path, record: JsonObject) -> ShownGroup:
    try:
        samples = tuple(
            ShownSample(**{name: sample[name] for name in _SAMPLE_FIELDS}, turns=turns_of(sample.get("turns", ())))
            for sample in record["samples"]
        )
        group = ShownGroup(group_id=record["group_id"], step=record["step"], prompt=record["prompt"], samples=samples)
        if wrong := [text for text in (group.prompt, *(one.text for one in samples)) if not isinstance(text, str)]:
            raise TypeError(f"{wrong[0]!r:.60} is no text")
        return group
    except TypeError as error:
        raise ValueError(f"{path}: group {record.get('group_id')!r} is not as Sluice writes it: {error}") from error
    except KeyError as absent:
        raise ValueError(f"{path}: group {record.get('group_id')!r} lacks the field {absent}") from absent
