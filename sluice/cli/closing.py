"""What a run leaves when it has ended: curves.png and summary.json in its directory, a closing table on the terminal."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def report(status: Any, *, departures: Sequence[str], run_dir: Path, wall_s: float) -> None:
    """Writes both files and prints the table of a run that trained at least one step; `status` is the run's last status."""
    from rich.console import Console

    from sluice.report.curves import draw_curves
    from sluice.report.samples import print_samples, read_samples
    from sluice.report.summary import build_summary, print_summary, write_summary

    console = Console()
    draw_curves(run_dir)
    summary = build_summary(status=status, run_dir=run_dir, wall_s=wall_s, departures=departures)
    write_summary(summary, run_dir=run_dir)
    print_samples(console, read_samples(run_dir), groups_shown=2, samples_shown=3)
    print_summary(console, status=status, summary=summary, run_dir=run_dir)
