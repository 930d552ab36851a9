"""What a run leaves when it has ended: curves.png, summary.json and report.html in its directory, a closing table."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO, cast


def print_checked(config: Any) -> None:
    """Says what a dry run of `config` that came to its end has found."""
    from sluice.config.schema.environments import AGENT

    if not config.environments:
        print("data, tokenizer and reward are fine: gold answers score right, garbage scores wrong")
        return
    print("data, tokenizer and reward are fine: where a grader scores, gold answers score right, garbage scores wrong")
    if any(one.environment != AGENT for one in config.environments.values()):
        print("environments are fine: each that the data names has played a scripted episode")
    if agents := [name for name, one in config.environments.items() if one.environment == AGENT]:
        print(f"not tried, because agents come when they like: {', '.join(agents)}")


def report(status: Any, *, departures: Sequence[str], run_dir: Path, wall_s: float) -> None:
    """Writes the files and prints the table of a run that trained at least one step; `status` is the run's last status.

    A disk without room costs the picture and the page; the summary waits for room.
    """
    from rich.console import Console

    from sluice.clock import SystemClock
    from sluice.errors import SluiceError
    from sluice.report.curves import CURVES_FILE, curves_of, save_curves
    from sluice.report.html_report import REPORT_FILE, write_report
    from sluice.report.samples import print_samples, read_samples
    from sluice.report.summary import build_summary, print_summary, write_summary
    from sluice.run_dir.full_disk import DiskWaits
    from sluice.telemetry.full_disk_stream import FullDiskStream

    console = Console(file=cast("TextIO", FullDiskStream(sys.stdout)))
    disk = DiskWaits(
        clock=SystemClock(), tell=lambda event, line: console.print(f"{event}: {line}", markup=False, soft_wrap=True)
    )
    figure = curves_of(run_dir)
    try:
        save_curves(figure, run_dir)
    except OSError as error:  # a picture of what metrics.jsonl has: nobody waits for it
        console.print(f"sluice: {CURVES_FILE} is left out: {error}", markup=False, soft_wrap=True)
    summary = build_summary(status=status, run_dir=run_dir, wall_s=wall_s, departures=departures)
    disk.write_blocking(write_summary, summary, run_dir=run_dir)
    try:
        write_report(run_dir, figure=figure)
    except (OSError, SluiceError) as error:  # the same again, in another form
        console.print(f"sluice: {REPORT_FILE} is left out: {error}", markup=False, soft_wrap=True)
    print_samples(console, read_samples(run_dir), groups_shown=2, samples_shown=3)
    print_summary(console, status=status, summary=summary, run_dir=run_dir)
