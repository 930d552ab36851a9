"""Which block of a completion is the program, and which outputs are as expected; nothing is run here."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reward.case_outputs import printed_equal, returned_equal
from services.reward.program_text import find_program
from tests.unit.reward.hostile import HOSTILE

SUM = "a, b = map(int, input().split())\nprint(a + b)\n"
ADD = "def add(a, b):\n    return a + b\n"


def block(content, language="python"):
    return f"```{language}\n{content}```\n"


@pytest.mark.parametrize(
    "text",
    [
        block(SUM),
        "Here it is: " + block(SUM, "Python"),
        block(SUM, "python3") + "It prints the sum.",
        block(SUM, ""),
        block(SUM) + "Example:\n" + block("3 4\n7\n", ""),
        block(SUM) + "Input:\n" + block("3 4\n", "text") + "Output:\n" + block("7\n", "text"),
        block(SUM) + "Run it:\n" + block("python add.py < input.txt\n", "bash"),
        block(SUM) + "With these numbers:\n" + block("print(3 + 4)\n"),
        block(SUM) + "As a comment:\n" + block("# 3 4 gives 7\n"),
        block(SUM, "") + "For example\n" + block("7\n", ""),
        "<think>" + block("print(input())\n") + "</think>" + block(SUM),
        block("print(input())\n") + "</think>\n" + block(SUM),
        block("print(input())\n") + "No, that only repeats.\n" + block(SUM),
        "```python\n" + SUM,
        "~~~python\n" + SUM + "~~~",
        "1. The program:\n   ```python\n   a, b = map(int, input().split())\n   print(a + b)\n   ```\n",
        "````python\n" + SUM + "````",
        "```python title=sum.py\n" + SUM + "```",
    ],
)
def test_the_program_that_reads_and_prints_is_taken(text):
    assert find_program(text, function=None).strip() == SUM.strip()


@pytest.mark.parametrize(
    "text",
    [
        block(ADD),
        block(ADD) + "Use it so:\n" + block("print(add(1, 2))\n"),
        block(ADD) + "Use it so:\n" + block("result = add(1, 2)\nassert result == 3\n") + block("3\n", ""),
        block(ADD) + "A helper for tests:\n" + block("def test_add():\n    assert add(1, 2) == 3\n"),
        block("def add(a, b):\n    return a - b\n") + "That subtracts.\n" + block(ADD),
        block(ADD, ""),
        block(ADD, "") + block("add(1, 2)  # 3\n", ""),
    ],
)
def test_the_block_that_defines_the_function_is_taken(text):
    assert find_program(text, function="add") == ADD


def test_a_class_solution_and_a_name_for_a_function_define_it_too():
    solution = "class Solution:\n    def add(self, a, b):\n        return a + b\n"
    assert find_program(block(solution) + block("Solution().add(1, 2)\n"), function="add") == solution
    assert (
        find_program(block("import operator\nadd = operator.add\n") + block("add(1, 2)\n"), function="add")
        != "add(1, 2)\n"
    )


@pytest.mark.parametrize("text", ["", SUM, "`print(3)`", "``` print(3) ```", "<think>" + block(SUM) + "</think>"])
def test_without_a_fenced_block_there_is_no_program(text):
    assert find_program(text, function=None) is None


@given(HOSTILE)
def test_a_program_is_looked_for_in_any_text(text):
    for function in (None, "add"):
        assert isinstance(find_program(text, function=function), str | None)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("7\n", "7"),
        ("7", "7\n"),
        ("  7  \n\n", "7"),
        ("1\n\n2\n", "1\n2\n"),
        ("1\n2\n", "1\n\n2\n"),
        ("1 2", "1  2"),
        ("a b\r\nc", "a b\nc"),
        ("0.3333333333333333", "0.333333"),
        ("0.33333 0.66667", "0.333333333 0.666666667"),
        ("3.0", "3"),
        ("3", "3.00"),
        ("1e5", "100000.0"),
        ("-0.0", "0"),
        ("", ""),
        ("\n", ""),
        ("inf", "inf"),
        ("Case 1: 0.5000001", "Case 1: 0.5"),
    ],
)
def test_printed_text_is_as_expected(printed, expected):
    assert printed_equal(printed, expected)


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("8", "7"),
        ("100000001", "100000000"),
        ("-100000001", "-100000000"),
        ("0.34", "0.333333"),
        ("nan", "nan2"),
        ("inf", "1e300"),
        ("1\n2", "1 2"),
        ("7 ", "seven"),
        ("", "7"),
        ("7", ""),
        ("7\n7", "7"),
        ("Yes", "YES"),
        ("1_000", "1000"),
        ("9" * 5000, "9" * 5001),
        ("1" + "0" * 400, "1.5"),
    ],
)
def test_printed_text_is_not_as_expected(printed, expected):
    assert not printed_equal(printed, expected)


def returned(value, written, *, as_json=True):
    return returned_equal(json.dumps({"value": value}), written, as_json=as_json)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (3, "3"),
        (3, "[3]"),
        ([3], "[[3]]"),
        (3.0, "3"),
        (True, "true"),
        (1, "true"),
        (False, "0"),
        (None, "null"),
        ("yes", '"yes"'),
        ("yes", "yes"),
        (["a"], '["a"]'),
        ("a", '["a"]'),
        ((1, 2), "[1, 2]"),
        ([(1, 2), (3, 4)], "[[1, 2], [3, 4]]"),
        ({1: 2}, '{"1": 2}'),
        ({1: 2}, '[{"1": 2}]'),
        (1 / 3, "0.333333"),
        ([1 / 3, 2], "[0.33333333, 2]"),
        ([], "[]"),
        (10**30, str(10**30)),
        (math.inf, "Infinity"),
        (True, "True"),
        ("True", "True"),
        (None, " None"),
        (["a", "b"], "['a', 'b']"),
        ([1, 2], "(1, 2)"),
        ([[1, 2]], "[(1, 2)]"),
        ({"a": 1}, "{'a': 1}"),
        ("{1, 2}", "{1, 2}"),
        ("(1j)", "(1j)"),
    ],
)
def test_a_returned_value_is_as_expected(value, written):
    assert returned(value, written)
    assert returned(value, written, as_json=False)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (4, "3"),
        (1, "[1, 2]"),
        ([3], "3"),
        (3, '"3"'),
        ("3", "3"),
        (None, "0"),
        (0, "null"),
        ("", "0"),
        (10**400, "1.5"),
        (1.5, str(10**400)),
        (-(10**400), "1e308"),
        (math.nan, "NaN"),
        (math.inf, "1e308"),
        (10**20 + 1, str(10**20)),
        ({"a": 1}, '{"b": 1}'),
        ([1, 2], "[2, 1]"),
        ([1], "[]"),
        (True, "False"),
        ([1], "(1, 2)"),
        (2, "(1) + (1)"),
        ([], "[" * 99_999),
    ],
)
def test_a_returned_value_is_not_as_expected(value, written):
    assert not returned(value, written)


def test_a_text_beside_arguments_that_are_no_json_may_stand_for_itself():
    assert returned("3", "3", as_json=False)
    assert returned(3, "3", as_json=False)
    assert returned(3, ["3"], as_json=False)
    assert not returned("4", "3", as_json=False)


@pytest.mark.parametrize(
    "line",
    ["", "nothing", "[]", '{"raised": "ValueError"}', '{"value": ' + "[" * 100_000, "9" * 10_000,
     '{"value": ' + "[" * 900 + "]" * 900 + "}", '{"value": ' + "[" * 99_999 + "]" * 99_999 + "}"],
)  # fmt: skip
def test_a_line_that_is_no_value_is_wrong_not_an_error(line):
    assert not returned_equal(line, "3", as_json=True)
    assert not returned_equal(line, "[" * 900 + "1" + "]" * 900, as_json=True)


@given(st.text(), st.text())
def test_any_two_texts_can_be_compared(printed, expected):
    assert printed_equal(printed, printed)
    assert isinstance(printed_equal(printed, expected), bool)
