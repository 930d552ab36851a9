"""Texts whose verdict is known beforehand: gold answers in the forms that graders read, and garbage. The check of graders
before a run trains and the conformance checks send these texts to a reward service.

Where the ground truth is test cases of a program, the gold answer is a program that knows the cases by heart.
"""

import json
import re
from typing import Final

GARBAGE: Final = ("", "?", "I do not know.", "<answer>?</answer>\nAnswer: ?\n#?")
"""Answers that are right for no question, in the forms that graders read too."""

_WHOLE = re.compile(r"([+-]?\d+)\.0+")


def gold_forms(ground_truth: str) -> list[str]:
    """Texts that state a gold answer in the forms that built-in graders read.

    Bare, `#`, `####`, `Answer:`, boxed, tagged; and last, for test cases, a program.
    """
    answer = as_a_model_writes(ground_truth)
    forms = ("{}", "#{}", "#### {}", "Answer: {}", "\\boxed{{{}}}", "<answer>{}</answer>")
    program = _program_for(ground_truth)
    return [*(form.format(answer) for form in forms), *([f"```python\n{program}```\n"] if program else [])]


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


def _program_for(ground_truth: str) -> str | None:
    """A program that passes the test cases of a ground truth, whose outputs it holds; None for another ground truth."""
    try:
        cases = json.loads(ground_truth)
        cases = json.loads(cases) if isinstance(cases, str) else cases
    except (ValueError, RecursionError):
        return None
    if isinstance(cases, list) and cases and all(isinstance(case, dict) for case in cases):
        details = cases[0].get("metadata")
        function = details.get("func_name") if isinstance(details, dict) else None
        columns = ([case.get(key) for case in cases] for key in ("input", "output"))
        cases = {"fn_name": function, **dict(zip(("inputs", "outputs"), columns, strict=True))}
    if not isinstance(cases, dict) or not isinstance(cases.get("outputs"), list) or "inputs" not in cases:
        return None
    function = cases.get("fn_name")
    if isinstance(function, str) and function.isidentifier():
        return _OF_A_FUNCTION.format(outputs=json.dumps([_value(one) for one in cases["outputs"]]), function=function)
    lines = [_lines(one) for one in (cases["inputs"], cases["outputs"])]
    return _OF_STANDARD_INPUT.format(inputs=json.dumps(lines[0]), outputs=json.dumps(lines[1]))


_OF_A_FUNCTION: Final = """\
import json
outputs = iter(json.loads({outputs!r}))
def {function}(*arguments): return next(outputs)
"""
_OF_STANDARD_INPUT: Final = """\
import json, sys
inputs, outputs = json.loads({inputs!r}), json.loads({outputs!r})
print(outputs[inputs.index(sys.stdin.read())])
"""


def _value(written: object) -> object:
    """The value that an expected output stands for: a text is JSON, else itself."""
    if not isinstance(written, str):
        return written
    try:
        return json.loads(written)
    except (ValueError, RecursionError):
        return written


def _lines(written: object) -> list[str]:
    """Inputs or outputs as texts; a list of lines is a text."""
    items = written if isinstance(written, list) else []
    return ["\n".join(map(str, one)) if isinstance(one, list) else str(one) for one in items]


def _written(value: object) -> str:
    """One value of JSON as a model writes it."""
    return as_a_model_writes(str(value)) if isinstance(value, float) else str(value)
