"""`python -m scripts.pictures`: writes the pictures of docs/architecture.md, or with --check says whether they are current."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from scripts.pictures import group_life, rooms, weight_push

DOCS = Path(__file__).parents[2] / "docs"

PICTURES: dict[str, Callable[[], str]] = {
    "rooms.svg": rooms.draw,
    "group-life.svg": group_life.draw,
    "weight-push.svg": weight_push.draw,
}


def stale() -> list[str]:
    """The names of the files that differ from what the code gives."""
    return [name for name, draw in PICTURES.items() if (DOCS / name).read_text(encoding="utf-8") != draw()]


def main() -> None:
    """Writes or checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a picture is stale")
    if not parser.parse_args().check:
        for name, draw in PICTURES.items():
            (DOCS / name).write_text(draw(), encoding="utf-8")
    elif names := stale():
        sys.exit(
            f"docs/{', docs/'.join(names)}: the code draws other pictures; run `python -m scripts.pictures`, commit"
        )


if __name__ == "__main__":
    main()
