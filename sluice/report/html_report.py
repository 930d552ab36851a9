"""RUN/report.html: a run on one page to send to somebody, its curves, some of its groups and its configuration.

One file that asks nobody for anything: no script, pictures and styles within, and a policy in its head by which a browser
refuses whatever else. What a model has written is shown as text, cut at TEXT_CHARACTERS, control characters and those that turn
the direction of writing made visible.
"""

import io
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from matplotlib import rc_context
from matplotlib.figure import Figure

import sluice
from sluice.config.load import parse_config
from sluice.errors import DataError, NotFound
from sluice.report.curves import curves_of
from sluice.report.figures import number, printable
from sluice.report.samples import ShownGroup, ShownSample, read_samples, spread
from sluice.report.settings import Setting, settings
from sluice.report.summary import SUMMARY_FILE, account_lines
from sluice.report.turns import turn_lines
from sluice.run_dir.durable import write_synced

REPORT_FILE: Final = "report.html"
GROUPS: Final = 12
SAMPLES: Final = 8
"""Of one group."""
TEXT_CHARACTERS: Final = 4000
"""Of one prompt or completion. Chosen: 12 groups of 8 are 400 kB at most, a letter's size."""

_TURNS_WRITING: Final = {code: f"\u27e8U+{code:04X}\u27e9" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}
"""Characters that turn the direction of what follows: shown by their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Completion:
    """One sample, as the page shows it."""

    text: str
    acc: str
    is_right: bool
    raw: str
    shaped: str
    tokens: int
    finish: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shown:
    """One group, as the page shows it."""

    title: str
    prompt: str
    completions: Sequence[_Completion]
    left_out: int
    """Samples that are not shown."""


def write_report(run_dir: Path, path: Path | None = None, *, figure: Figure | None = None) -> Path:
    """Writes the page and returns its path; RUN/report.html unless `path` is another. `figure` are the run's curves, if drawn.

    Raises NotFound for a folder that is no run, DataError for files that are damaged, OSError.
    """
    path = path or run_dir / REPORT_FILE
    write_synced(path, [report_page(run_dir, figure=figure).encode("utf-8", "replace")])
    return path


def report_page(run_dir: Path, *, figure: Figure | None = None) -> str:
    """The page of a run, as far as the run has come. Raises as `write_report`."""
    config_path = run_dir / "config.yaml"
    try:
        config = parse_config(config_path.read_text(encoding="utf-8"), where=str(config_path))
    except (OSError, UnicodeDecodeError) as error:
        raise NotFound(
            f"report: {run_dir} must be a run directory, which has a config.yaml: {error}",
            fix="name the folder that `sluice up` has printed",
        ) from error
    try:
        figure = figure or curves_of(run_dir)
        groups = read_samples(run_dir)
        facts = _facts(run_dir)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"report: a file of {run_dir} is not as Sluice wrote it: {error}") from error
    every = settings(config)
    return _template().render(
        title=clean(run_dir.resolve().name),
        facts=facts,
        departures=config.departures,
        curves=_svg(figure),
        groups=[_shown(group) for group in spread(groups, GROUPS)],
        kept=len(groups),
        changed=_cleaned(setting for setting in every if setting.changed),
        unchanged=_cleaned(setting for setting in every if not setting.changed),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        version=sluice.__version__,
    )


def clean(text: str) -> str:
    """Text from outside as the page shows it, before it is escaped."""
    cut = text[:TEXT_CHARACTERS]
    more = f" ... and {len(text) - TEXT_CHARACTERS} more characters" if len(text) > TEXT_CHARACTERS else ""
    return printable(cut).translate(_TURNS_WRITING) + more


def _facts(run_dir: Path) -> list[tuple[str, str]]:
    """The closing account; empty for a run that has not ended."""
    path = run_dir / SUMMARY_FILE
    if not path.exists():
        return []
    summary: Any = json.loads(path.read_text(encoding="utf-8"))
    return [(name, clean(text.plain)) for name, text in account_lines(summary)]


def _shown(group: ShownGroup) -> _Shown:
    return _Shown(
        title=clean(f"step {group.step}, group {group.group_id}"),
        prompt=clean(group.prompt),
        completions=[_completion(sample) for sample in group.samples[:SAMPLES]],
        left_out=max(0, len(group.samples) - SAMPLES),
    )


def _completion(sample: ShownSample) -> _Completion:
    return _Completion(
        text=clean("\n".join(turn_lines(sample.turns)) if sample.turns else sample.text),
        acc=number(sample.acc, 3),
        is_right=sample.acc > 0,
        raw=number(sample.raw_score, 3),
        shaped=number(sample.shaped_reward, 3),
        tokens=sample.tokens,
        finish=clean(sample.finish_reason),
    )


def _cleaned(found: Any) -> list[Setting]:
    return [
        Setting(key=one.key, value=clean(one.value), default=clean(one.default), changed=one.changed) for one in found
    ]


def _svg(figure: Figure) -> str:
    """The curves as one SVG element: without a header, which names an address, and without metadata."""
    written = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sluice"}):
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = written.getvalue()
    bare = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    return bare.replace("<svg ", '<svg role="img" aria-label="Curves of the run" ', 1)


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("sluice.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html.jinja")
