"""Texts whose verdict is known beforehand: gold answers in the forms that graders read, and garbage. The check of graders
before a run trains and the conformance checks send these texts to a reward service."""

import contextlib
import json
from typing import Final

GARBAGE: Final = ("", "?", "I do not know.", "<answer>?</answer>\nAnswer: ?\n#?")
"""Answers that are right for no question, in the forms that graders read too."""


def gold_forms(ground_truth: str) -> list[str]:
    """Texts that state a gold answer in the forms that built-in graders read: bare, `#`, `####`, `Answer:`, boxed, tagged."""
    with contextlib.suppress(ValueError):
        entry = json.loads(ground_truth)
        if isinstance(entry, dict) and "answer" in entry:
            ground_truth = str(entry["answer"])
    forms = ("{}", "#{}", "#### {}", "Answer: {}", "\\boxed{{{}}}", "<answer>{}</answer>")
    return [form.format(ground_truth) for form in forms]
