"""`sluice report`: a run on one page to send to somebody."""

import argparse
import importlib.util
from pathlib import Path
from typing import Any

from sluice.errors import ConfigError, LaunchError


def add_parser(commands: Any) -> None:
    """Adds `report`."""
    report = commands.add_parser(
        "report",
        help="a run as one self-contained page",
        description="Writes one HTML file with the curves of a run, some of its groups and its configuration. The file asks "
        "nobody for anything. A run that goes on is reported as far as it has come.",
    )
    report.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    report.add_argument("-o", "--output", type=Path, metavar="FILE", help="where to (default: RUN/report.html)")
    report.set_defaults(run=_report)


def _report(args: argparse.Namespace) -> int:
    if missing := [name for name in ("matplotlib", "jinja2") if importlib.util.find_spec(name) is None]:
        raise LaunchError(f"report: needs {' and '.join(missing)}; install sluice-rl[coordinator]")
    from sluice.report.html_report import write_report

    try:
        path = write_report(args.run_dir, args.output)
    except OSError as error:
        raise ConfigError(f"report: cannot write {args.output or args.run_dir}: {error}") from error
    print(path)
    return 0
