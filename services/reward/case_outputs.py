"""Compares what a program printed or returned with what a test case expects, as verl's prime_code compares.

Printed text: lines, blank ones left out, word by word. Values: Python's equality, so that 1, 1.0 and true are equal. In both
a number that is no whole number may differ by 1e-8 + 1e-5 x the expected number (numpy's `allclose`). Values may be the only
item of a list that is expected, because APPS wraps its values in lists.

Kinder than verl where verl is only clumsy: several numbers on a line, blanks between words, tuples at any depth. Stricter
where verl would pay for a wrong answer: the first item of a longer list is not the list.
"""

import ast
import contextlib
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

_REL_TOL: Final = 1e-5
_ABS_TOL: Final = 1e-8
_PYTHON = re.compile(r"\s*(?:True\s*$|False\s*$|None\s*$|[\[({])")
_WHOLE = re.compile(r"[+-]?[0-9]+")


def printed_equal(printed: str, expected: str) -> bool:
    """Whether a program's output is the expected text."""
    lines, wanted = _words(printed), _words(expected)
    return len(lines) == len(wanted) and all(map(_line_equal, lines, wanted))


def returned_equal(line: str, written: Any, *, as_json: bool) -> bool:
    """Whether `line`, the JSON {"value": ...} of a call, holds the value that `written` stands for.

    `as_json`: a text in `written` is JSON, as in verl; else the text may also stand for itself.
    """
    try:
        reply = json.loads(line)
        if not isinstance(reply, Mapping) or "value" not in reply:
            return False
        return any(_value_equal(reply["value"], wanted) for wanted in _meanings(written, as_json=as_json))
    except (ValueError, RecursionError):  # a number of many digits, or a value nested too deeply to be read or compared
        return False


def parsed(written: str) -> Any:
    """The value of a text that is JSON or, where data sets write values as Python does, such as `True` and `(1, 2)`, Python's.

    Every other text is itself; APPS writes values in all three ways.
    """
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(written)
    if _PYTHON.match(written):
        with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            return json.loads(json.dumps(ast.literal_eval(written.strip())))  # a set is no JSON, a tuple becomes a list
    return written


def _meanings(written: Any, *, as_json: bool) -> list[Any]:
    """The values that are right: the value, and the value without a list around it."""
    values = [parsed(written) if isinstance(written, str) else written]
    if isinstance(written, str) and (not as_json or _PYTHON.match(written)):
        values.append(written)
    values += [value[0] for value in values if isinstance(value, list) and len(value) == 1]
    if not as_json:
        values += [parsed(value) for value in values if isinstance(value, str)]
    return values


def _value_equal(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_value_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_value_equal(one[key], other[key]) for key in one)
    if isinstance(one, int | float) and isinstance(other, int | float):
        return _number_equal(one, other)
    return type(one) is type(other) and one == other


def _number_equal(one: float, expected: float) -> bool:
    """Two whole numbers exactly; else within the tolerance."""
    if one == expected:
        return True
    if isinstance(one, int) and isinstance(expected, int):
        return False
    try:
        return abs(float(one) - float(expected)) <= _ABS_TOL + _REL_TOL * abs(float(expected)) < math.inf
    except OverflowError:  # a whole number beyond every float
        return False


def _line_equal(line: list[str], expected: list[str]) -> bool:
    return len(line) == len(expected) and all(map(_word_equal, line, expected))


def _word_equal(word: str, expected: str) -> bool:
    if word == expected:
        return True
    if _WHOLE.fullmatch(word) and _WHOLE.fullmatch(expected):
        return Decimal(word) == Decimal(expected)  # int() refuses thousands of digits
    numbers = _number(word), _number(expected)
    return None not in numbers and _number_equal(*numbers)


def _number(word: str) -> Any:
    """The number that a word is; None for another word, also for 1_000, which is Python's own spelling."""
    try:
        return None if "_" in word else float(word)
    except ValueError:
        return None


def _words(text: str) -> list[list[str]]:
    """The words of each line that has any."""
    return [words for line in text.splitlines() if (words := line.split())]
