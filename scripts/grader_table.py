"""Writes the tables of docs/graders-compared.md, from the corpus of tests/unit/reward/corpus.

`python scripts/grader_table.py`; `--check` fails when the page is not what this writes. The corpus states the verdicts, and
test_corpus.py holds the graders to these verdicts.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.unit.reward.corpus.cases import GRADERS, Case, read_cases  # noqa: E402 - the path comes first

PAGE = ROOT / "docs" / "graders-compared.md"
BEGIN, END = "<!-- made by scripts/grader_table.py -->", "<!-- end of what scripts/grader_table.py made -->"
_SHOWN_A_CATEGORY = 4
_LONGEST_SHOWN = 40
_WORDS = {"R": "right", "W": "wrong", "U": "unparsed", "-": "—", "T": "timeout"}


def page(text: str) -> str:
    """The page with its tables made anew."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    assert begin
    assert end
    return f"{head}{BEGIN}\n\n{tables(read_cases())}\n{END}{tail}"


def tables(cases: Sequence[Case]) -> str:
    """Both tables and what they say."""
    return "\n".join([*_counts(cases), "", *_examples(cases), ""])


def _counts(cases: Sequence[Case]) -> list[str]:
    lines = [
        f"Of {len(cases)} cases, in a cell: right answers accepted of all right ones, and, after a `+`, how many wrong ones",
        "were accepted too. Cases whose truth is a matter of taste are left out, and `—` says that the grader cannot read the",
        "ground truths.",
        "",
        f"| category | {' | '.join(f'`{name}`' for name in GRADERS)} |",
        f"|---|{'---|' * len(GRADERS)}",
    ]
    by_category = [(name, list(group)) for name, group in groupby(cases, key=lambda case: case.category)]
    for name, group in [*by_category, ("**all**", list(cases))]:
        lines.append(f"| {name} | {' | '.join(_cell(group, grader) for grader in GRADERS)} |")
    return lines


def _cell(cases: Sequence[Case], grader: str) -> str:
    read = [case for case in cases if case.verdict(grader) != "-" and case.truth != "ambiguous"]
    if not read:
        return "—"
    right = [case for case in read if case.truth == "right"]
    accepted = sum(case.verdict(grader) == "R" for case in right)
    too_many = sum(case.verdict(grader) == "R" for case in read) - accepted
    return f"{accepted}/{len(right)}{f' +{too_many}' if too_many else ''}"


def _examples(cases: Sequence[Case]) -> list[str]:
    lines = [
        "Some of the answers about which graders differ:",
        "",
        f"| ground truth | answer | truly | {' | '.join(f'`{name}`' for name in GRADERS)} | why |",
        f"|---|---|---|{'---|' * len(GRADERS)}---|",
    ]
    for _, group in groupby(cases, key=lambda case: case.category):
        seen: set[str] = set()
        for case in group:
            plain = case.text.isprintable() and max(len(case.text), len(case.gold)) <= _LONGEST_SHOWN
            differ = len(set(case.verdicts) - set("-")) > 1
            if not plain or not differ or case.verdicts in seen or len(seen) == _SHOWN_A_CATEGORY:
                continue
            seen.add(case.verdicts)
            said = " | ".join(_WORDS[verdict] for verdict in case.verdicts)
            lines.append(f"| {_code(case.gold)} | {_code(case.text)} | {case.truth} | {said} | {case.why} |")
    return lines


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def main() -> int:
    """Writes or checks; returns the exit code."""
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if "--check" in sys.argv[1:]:
        return int(before != after)
    PAGE.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
