"""Texts whose verdict is known beforehand: gold answers in the forms that graders read, and garbage. The check of graders
before a run trains and the conformance checks send these texts to a reward service."""

import json
import re
from typing import Final

GARBAGE: Final = ("", "?", "I do not know.", "<answer>?</answer>\nAnswer: ?\n#?")
"""Answers that are right for no question, in the forms that graders read too."""

_WHOLE = re.compile(r"([+-]?\d+)\.0+")


def gold_forms(ground_truth: str) -> list[str]:
    """Texts that state a gold answer in the forms that built-in graders read: bare, `#`, `####`, `Answer:`, boxed, tagged."""
    answer = as_a_model_writes(ground_truth)
    forms = ("{}", "#{}", "#### {}", "Answer: {}", "\\boxed{{{}}}", "<answer>{}</answer>")
    return [form.format(answer) for form in forms]


def as_a_model_writes(ground_truth: str) -> str:
    """The answer that a model would write where the data has `ground_truth`: 125 for 125.0, 34 for the JSON texts "34" and
    ["34"], `1, 2` for [1, 2], the answer of a JSON object that has one; every other ground truth unchanged."""
    text = ground_truth.strip()
    if whole := _WHOLE.fullmatch(text):
        return whole[1]
    if text[:1] not in ('"', "[", "{"):
        return ground_truth
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ground_truth
    if isinstance(value, dict):
        return _written(value["answer"]) if "answer" in value else ground_truth
    if isinstance(value, list) and value and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(map(_written, value))
    return value if isinstance(value, str) else ground_truth


def _written(value: object) -> str:
    """One value of JSON as a model writes it."""
    return as_a_model_writes(str(value)) if isinstance(value, float) else str(value)
