"""What the corpus does not cover: settings, choices, form, ground truths that are none, and hostile text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.reward.final_answers import find, last_boxed
from services.reward.ports import Completion, Question
from services.reward.sandbox.loading import Asked
from services.reward.verifiers.numeric import parse
from tests.unit.reward.hostile import HOSTILE


def ask(verifier, text, ground_truth, *, finished=True, **options):
    question = Question(data_source="", prompt_text="", ground_truth=ground_truth, extra_info={})
    asked = Asked(f"services.reward.verifiers.{verifier}", options)
    return asked.about(question, Completion(text=text, finished=finished))


def judged(*arguments, **options):
    grade = ask(*arguments, **options)["grade"]
    return grade["raw_score"], grade["extracted"], grade["status"]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("Answer: B", "B"),
        ("Answer: (b)", "B"),
        ("Answer: B) Paris", "B"),
        ("Answer: **B**", "B"),
        ("\\boxed{\\text{(B)}}", "B"),
        ("<answer>\nB.\n</answer>", "B"),
        ("Answer: the best choice is B", "B"),
        ("The answer is (B).", "B"),
        ("First I took option A. No: option B", "B"),
        (" B ", "B"),
        ("Answer: A\nAnswer: B", "B"),
        ("A good question. Answer: C", "C"),
        ("Answer: Because", ""),
        ("Answer: Z", ""),
        ("A good question.", ""),
        ("", ""),
    ],
)
def test_multiple_choice_finds_the_last_letter(text, letter):
    assert judged("multiple_choice", text, "(B)") == (float(letter == "B"), letter, "ok" if letter else "unparsed")


def test_multiple_choice_knows_how_many_choices_there_are():
    assert judged("multiple_choice", "Answer: E", "A", letters="ABCD") == (0.0, "", "unparsed")
    assert "must begin with one of ABCD" in ask("multiple_choice", "A", "E", letters="ABCD")["error"]


@pytest.mark.parametrize(
    ("options", "text", "raw_score"),
    [
        ({"tags": ["think", "answer"]}, "<think>a</think>\n<answer>b</answer> ", 1.0),
        ({"tags": ["think", "answer"]}, "<answer>b</answer><think>a</think>", 0.0),
        ({"tags": ["think", "answer"]}, "<think>a<answer>b</answer></think>", 0.0),
        ({"tags": ["think", "answer"]}, "So <think>a</think><answer>b</answer>", 0.0),
        ({"tags": ["think", "answer"]}, "<think>a</think><answer>b</answer>.", 0.0),
        ({"tags": ["think", "answer"]}, "<think>a</think><answer>b", 0.0),
        ({"tags": ["a"]}, "<a>1</a><a>2</a>", 0.0),
        ({"pattern": "^So.*done$"}, "So\nI am\ndone", 1.0),
        ({"pattern": "^So.*done$"}, "I am done", 0.0),
        ({"pattern": "x", "tags": ["a"]}, "<a>y</a>", 0.0),
    ],
)
def test_format_looks_at_the_form_alone(options, text, raw_score):
    assert judged("format", text, "anything", **options)[0] == raw_score
    assert judged("format", text, "anything", finished=False, **options)[0] == 0.0


@pytest.mark.parametrize(
    ("options", "text", "raw_score"),
    [
        ({}, "Answer: 3.1416", 0.0),
        ({"abs_tol": 0.001}, "Answer: 3.1416", 1.0),
        ({"rel_tol": 1e-3}, "Answer: 3.1416", 1.0),
        ({"rel_tol": 0.0}, "Answer: 3.1415900001", 0.0),
        ({"answer_in": "boxed"}, "Answer: 3.14159", 0.0),
        ({"answer_in": "whole"}, "3.14159", 1.0),
    ],
)
def test_numeric_has_tolerances_and_places(options, text, raw_score):
    assert judged("numeric", text, "3.14159", **options)[0] == raw_score


@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("42", '"42"'),
        ("42", "“42.”"),
        ("42", "'42'"),
        ("42", "42:"),
        ("42", "42..."),
        ("42", "42\u2026"),
        ("42", "US$42"),
        ("42", "A\\$42"),
        ("42", "USD 42.00"),
        ("-42", "-$42"),
        ("42", "42 元"),
        ("42", "42円"),
        ("42", "42 (cm)"),
        ("42", "42 (m/s^2)"),
        ("100000", "1,00,000"),
        ("1234567", "12,34,567"),
        ("0.5", "\\frac{1}2"),
        ("0.5", "\\frac1{2}"),
        ("1500", "1.5×10³"),
        ("0.0015", "1.5 x 10⁻³"),
        ("1500", "1.5*10**3"),
        ('"42"', "42"),
    ],
)
def test_numeric_reads_numbers_as_people_write_them(gold, answer):
    assert judged("numeric", f"Answer: {answer}", gold) == (1.0, answer, "ok")
    assert judged("numeric", f"<answer>{answer}</answer>", gold) == (1.0, answer, "ok")


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        *(
            ("50 per cent", 0.5),
            ("\uff14\uff12\uff0e\uff15", 42.5),
            ("\uff11\uff0c\uff12\uff13\uff14", 1234),
            ("\u200b5\ufeff", 5),
            ("5\x00", 5),
        ),
        *(
            ("5·10^3", 5000),
            ("5 ⋅ 10^{-3}", 0.005),
            ("10^3", 1000),
            ("10^{-2}", 0.01),
            ("-10³", -1000),
            ("10^3 m", 1000),
        ),
        *(
            ("5 \\text{m}^{2}", 5),
            ("5\\,\\mathrm{m}^2", 5),
            ("25^\\circ\\text{C}", 25),
            ("25^{\\circ} \\mathrm{C}", 25),
            ("5 km2", 5),
        ),
        *(
            ("5个", 5),
            ("5 个苹果", 5),
            ("5米", 5),
            ("5分", 5),
            ("[42]", 42),
            ("\\textit{42}", 42),
            ("5¢", 5),
        ),
        *(("x = y = 5", 5), ("5 squared meters", 5), ("5 percentage points", 5), ("12 pairs", 12), ("3 quarters", 3)),
        *(
            ("x = 5, y = 6", None),
            ("for n = 3, x = 5", 5),
            ("x = 5 and y = 6", None),
            ("1 to 2", None),
            ("5 percent of x", None),
            ("5 minus 3", None),
        ),
        *(
            ("5 plus x", None),
            ("5 divided by 3", None),
            ("5 squared", None),
            ("5 factorial", None),
            ("5 choose 2", None),
        ),
        *(
            ("5 dozens", None),
            ("5 hundredths", None),
            ("2 thirds", None),
            ("3 halves", None),
            ("5 lakh", None),
            ("5 Crore", None),
        ),
        *(
            ("5 Million", None),
            ("5 bn", None),
            ("5 trillions", None),
            ("5 remainder 2", None),
            ("5 square roots of 2", None),
        ),
        *(("5万", None), ("5分之1", None), ("5成", None), ("5以上", None), ("5 more than x", None), ("5 googol", None)),
    ],
)
def test_numeric_takes_a_unit_for_a_unit_and_a_factor_for_no_number(answer, number):
    found = parse(answer)
    assert (found is None) == (number is None)
    assert number is None or float(found) == pytest.approx(number, rel=1e-12)


@pytest.mark.parametrize("answer", ["42 (million)", "12,34", "5:00", "5 : 3", "5,5", "(a) 42", "11²"])
def test_numeric_does_not_guess(answer):
    assert judged("numeric", f"Answer: {answer}", "42")[2] == "unparsed"


def test_blanks_at_the_end_hide_no_answer():
    for verifier in ("numeric", "exact", "multiple_choice"):
        assert judged(verifier, "Answer: B" + "\n" * 5000, "5" if verifier == "numeric" else "B")[1] == "B"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>34</think><answer>35</answer>", "35"),
        ("<think>\\boxed{34} so</think>\n\\boxed{35}", "35"),
        ("<Answer>35</Answer>", "35"),
        ("<ANSWER>\n35\n</ANSWER>", "35"),
        ("The answer is:\n\\[\n35\n\\]", "35"),
        ("Answer:\n$$\n35\n$$", "35"),
        ("答案是35", "35"),
        ("最终答案为：**35**", "35"),
        ("Answer: 34. Answer: 35", "35"),
        ("这个答案是错的。答案：35", "35"),
    ],
)
def test_the_answer_is_found_behind_thoughts_and_marks(text, answer):
    assert judged("numeric", text, "35") == (1.0, answer, "ok")
    assert judged("exact", text, "35") == (1.0, answer, "ok")


@pytest.mark.parametrize("verifier", ["numeric", "exact", "math_verify"])
@pytest.mark.parametrize(
    "text", ["<think>Answer: 34", "\n<think>\n\\boxed{34}", "<think>a</think>\n<think>34", "<THINK>34"]
)
def test_thoughts_that_never_end_hold_no_answer(verifier, text):
    assert judged(verifier, text, "34") == (0.0, "", "unparsed")


def test_math_verify_takes_no_box_of_the_thoughts():
    assert judged("math_verify", "<think>\\boxed{4}, no</think>\\boxed{5}", "5")[0] == 1.0
    assert judged("math_verify", "<think>\\boxed{5}, no</think>\\boxed{4}", "5")[0] == 0.0


def test_whole_numbers_are_compared_exactly_unless_a_tolerance_is_set():
    large = 10**20
    assert judged("numeric", f"Answer: {large + 1}", str(large))[0] == 0.0
    assert judged("numeric", f"Answer: {large + 1}", str(large), rel_tol=1e-9)[0] == 1.0


def test_exact_can_ignore_case():
    assert judged("exact", "Answer: PARIS", "Paris")[0] == 0.0
    assert judged("exact", "Answer:  PARIS", "Paris", ignore_case=True)[0] == 1.0


@pytest.mark.parametrize("gold", ["__init__", "`x`", "_a_", "5.", "C++"])
def test_exact_knows_an_answer_whose_ground_truth_has_markup(gold):
    assert judged("exact", f"So it is done.\nAnswer: {gold}", gold)[0] == 1.0
    assert judged("exact", f"## Answer\n{gold}", gold)[0] == 1.0
    assert judged("exact", f"<answer>{gold}</answer>", gold)[0] == 1.0
    assert judged("exact", "Answer: init", "__init__")[0] == 0.0


def test_gsm8k_gives_format_score_for_a_wrong_number_in_the_right_place():
    assert judged("gsm8k", "#### 4", "5", format_score=0.1) == (0.1, "4", "ok")
    assert judged("gsm8k", "4", "5", format_score=0.1) == (0.0, "", "unparsed")


@pytest.mark.parametrize(("verifier", "gold"), [("numeric", "five"), ("math_verify", ""), ("multiple_choice", "7")])
def test_a_ground_truth_that_cannot_be_read_is_an_error_not_a_zero(verifier, gold):
    assert ask(verifier, "Answer: 7", gold)["error"].startswith("ValueError: ground_truth: must")


def test_reasoning_gym_refuses_settings():
    with pytest.raises(ValueError, match="takes no settings"):
        Asked("services.reward.verifiers.mixadd3", {"k": 1})


OPTIONS = {"math_dapo": {}, "gsm8k": {}, "exact": {}, "numeric": {}, "multiple_choice": {}, "mixadd3": {},
           "format": {"tags": ["think", "answer"]}}  # fmt: skip
GOLDS = {"multiple_choice": "B"}


@pytest.mark.parametrize("verifier", OPTIONS)
@given(text=HOSTILE)
@settings(max_examples=60, deadline=None)
def test_a_grader_survives_any_text(verifier, text):
    grade = ask(verifier, text, GOLDS.get(verifier, "34"), **OPTIONS[verifier])["grade"]
    assert grade["acc"] in (0.0, 1.0)
    assert grade["status"] in ("ok", "unparsed")


@pytest.mark.parametrize("verifier", OPTIONS)
@pytest.mark.parametrize("piece", ["9", "(", "\\boxed{", "Answer: ", "<answer>", "#### 1 ", "\x00", "{,}", "½"])
def test_a_grader_survives_a_megabyte(verifier, piece):
    text = piece * (1_000_000 // len(piece))
    assert ask(verifier, text, GOLDS.get(verifier, "34"), **OPTIONS[verifier])["grade"]["acc"] == 0.0


@given(st.fractions())
def test_numeric_reads_every_fraction_it_is_shown(value):
    top, bottom = value.numerator, value.denominator
    shown = [f"{top}/{bottom}", f"\\frac{{{top}}}{{{bottom}}}", f"$\\dfrac{{{top}}}{{{bottom}}}$."]
    if len(shown[-1]) < 190:
        assert {parse(text) for text in shown} == {value}


@given(st.integers(min_value=-(10**30), max_value=10**30))
def test_numeric_reads_every_whole_number_with_separators(value):
    assert {parse(f"{value}"), parse(f"{value:,}"), parse(f"{value:,}".replace(",", "{,}")), parse(f"x={value}.")} == {
        value
    }


def test_the_last_box_has_balanced_braces():
    assert last_boxed("\\boxed{1} \\boxed{\\frac{1}{2}}.") == "\\frac{1}{2}"
    assert last_boxed("\\boxed{1") is None
    assert last_boxed("") is None
    assert find("\\boxed{1} <answer>2</answer> Answer: 3", "boxed") == "1"
    assert find("\\boxed{1} <answer>2</answer> Answer: 3", "any") == "3"
    assert find("Answer: \\boxed{1}", "any") == "1"
