"""Texts whose verdict is known beforehand: gold answers as graders read them, and garbage. Whoever checks a reward
service sends them: a run before it trains, and the conformance checks."""

import contextlib
import json
from typing import Final

GARBAGE: Final = ("", "?", "I do not know.")
"""Right for no question."""


def gold_forms(ground_truth: str) -> list[str]:
    """Texts that state a gold answer in the ways the built-in graders read: bare, `#`, `####`, `Answer:`, boxed, tagged."""
    with contextlib.suppress(ValueError):
        entry = json.loads(ground_truth)
        if isinstance(entry, dict) and "answer" in entry:
            ground_truth = str(entry["answer"])
    forms = ("{}", "#{}", "#### {}", "Answer: {}", "\\boxed{{{}}}", "<answer>{}</answer>")
    return [form.format(ground_truth) for form in forms]
