"""python -m benchmarks.run [NAME ...]: runs the benchmarks, prints a table each, writes benchmarks/results/NAME.json."""

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.report import show, write
from sluice.telemetry.logs import configure_logs

NAMES = sorted(
    path.stem
    for path in Path(__file__).parent.glob("*.py")
    if path.stem not in ("__init__", "report", "run", "one_gpu")
)


def main() -> int:
    """Exit code 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)} (default: all)")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    configure_logs(service="benchmark", level="warning")
    missed = 0
    for name in names:
        rows = importlib.import_module(f"benchmarks.{name}").run()
        show(name, rows)
        print(f"written to {write(name, rows)}")
        missed += sum(not row.met for row in rows)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
