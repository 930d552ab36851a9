"""Writes the table of docs/security.md that says who may call what, from sluice/rpc/access.py.

`python scripts/access_table.py`; a test keeps the page so.
"""

import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from sluice.rpc.access import ALLOWED, ANYONE, READS_METRICS, TAKES_EPISODES, Role  # noqa: E402 - the path comes first

PAGE = ROOT / "docs" / "security.md"
BEGIN, END = "<!-- made by scripts/access_table.py -->", "<!-- end of what scripts/access_table.py made -->"


def page(text: str) -> str:
    """The page with its table made anew."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin
    assert end
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


def table() -> str:
    """One line for the methods of a service that the same roles may call."""
    lines = ["| service | methods | roles |", "|---|---|---|"]
    rows = [(*path.strip("/").split("/"), _roles(roles)) for path, roles in ALLOWED.items()]
    rows += [(*path.strip("/").split("/"), "anybody") for path in sorted(ANYONE)]
    for (service, roles), group in groupby(rows, key=lambda row: (row[0], row[2])):
        methods = ", ".join(f"`{row[1]}`" for row in group)
        lines.append(f"| {service.rpartition('.')[2]} | {methods} | {roles} |")
    lines.append(f"| every metrics endpoint | `/metrics`, `/targets` | {_roles(READS_METRICS)} |")
    lines.append(f"| the coordinator's gateway | `POST /v1/episodes` | {_roles(TAKES_EPISODES)} |")
    lines.append("| the coordinator's gateway | everything else | the key of one episode |")
    return "\n".join(lines)


def _roles(roles: frozenset[Role]) -> str:
    return ", ".join(role for role in Role if role in roles)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
