"""What a benchmark hands over: rows for the table that `make bench` prints and the JSON it writes."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measured claim."""

    what: str
    value: float
    unit: str
    target: str
    """The target as a person reads it."""
    met: bool


def write(name: str, rows: Sequence[Row]) -> Path:
    """Writes results/<name>.json with the machine it was measured on."""
    RESULTS.mkdir(exist_ok=True)
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "system": platform.system()}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    return path


def show(name: str, rows: Sequence[Row]) -> None:
    """Prints the rows as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table("what", "measured", "target", "met", title=name, title_justify="left")
    for row in rows:
        table.add_row(row.what, f"{row.value:.3g} {row.unit}", row.target, "yes" if row.met else "NO")
    Console().print(table)
