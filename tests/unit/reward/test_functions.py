"""Users' functions as graders: verl's signature as it is, sync and async, per sample and per group."""

import json
import sys
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from services.reward.functions import grade_of
from services.reward.ports import Completion, Question
from services.reward.sandbox.loading import Asked

QUESTION = Question(
    data_source="sums", prompt_text="1+1=", ground_truth="2", extra_info={"split": "train"}
)  # fmt: skip


@pytest.fixture
def asked(tmp_path):
    """Writes a file with one function `score` and loads it; the file's name differs from test to test."""

    def load(source, **settings):
        path = tmp_path / "mine.py"
        path.write_text(source)
        return Asked(f"{path}:score", settings)

    return load


def about(verifier, *texts):
    completions = [Completion(text=text, finished=True) for text in texts]
    if verifier.whole:
        return verifier.about_all(QUESTION, completions, timeout_s=1.0)
    return [verifier.about(QUESTION, completion) for completion in completions]


def scores(replies):
    return [(reply["grade"]["raw_score"], reply["grade"]["acc"]) for reply in replies]


def test_verls_compute_score_is_called_as_it_is(asked):
    verifier = asked(
        "def score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    assert (data_source, extra_info) == ('sums', {'split': 'train'})\n"
        "    return {'score': 1.0 if solution_str == ground_truth else -1.0, 'acc': solution_str == ground_truth,\n"
        "            'pred': solution_str, 'why': 'text is no component'}\n"
    )
    replies = about(verifier, "2", "3")
    assert scores(replies) == [(1.0, 1.0), (-1.0, 0.0)]
    assert [reply["grade"]["extracted"] for reply in replies] == ["2", "3"]
    assert [reply["grade"]["parts"] for reply in replies] == [{}, {}]
    assert not verifier.whole


def test_kwargs_get_verls_four_names_and_the_settings(asked):
    verifier = asked("def score(**kwargs):\n    return {'n': len(kwargs), 'k': kwargs['k']}\n", k=0.5)
    assert about(verifier, "2")[0]["grade"]["parts"] == {"n": 5.0, "k": 0.5}


def test_an_async_function_is_asked_about_all_samples_at_once(asked):
    verifier = asked(
        "import asyncio\n"
        "here = set()\n"
        "async def score(solution_str, prompt_str, finished):\n"
        "    assert prompt_str == '1+1=' and finished\n"
        "    here.add(solution_str)\n"
        "    while len(here) < 3:\n"
        "        await asyncio.sleep(0)\n"
        "    return float(solution_str)\n"
    )
    assert verifier.whole
    assert scores(about(verifier, "0", "1", "2")) == [(0.0, 0.0), (1.0, 1.0), (2.0, 1.0)]


def test_one_slow_and_one_broken_async_sample_cost_only_themselves(asked):
    verifier = asked(
        "import asyncio\n"
        "async def score(solution_str):\n"
        "    if solution_str == 'slow':\n"
        "        await asyncio.Event().wait()\n"
        "    return float(solution_str)\n"
    )
    completions = [Completion(text=text, finished=True) for text in ("1", "slow", "x")]
    good, slow, broken = verifier.about_all(QUESTION, completions, timeout_s=0.01)
    assert good["grade"]["acc"] == 1.0
    assert slow == {"timeout": "not graded within 0.01 s"}
    assert broken["error"].startswith("ValueError: could not convert")


@pytest.mark.parametrize("prefix", ["", "async "])
def test_a_group_function_sees_all_samples(asked, prefix):
    verifier = asked(
        f"{prefix}def score(solution_strs, ground_truth, data_sources):\n"
        "    best = max(map(len, solution_strs))\n"
        "    return [len(text) / best for text in solution_strs]\n"
    )
    assert verifier.whole
    assert scores(about(verifier, "a", "aa", "aaaa")) == [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)]


def test_a_group_function_that_raises_or_miscounts_grades_nobody(asked):
    raising = asked("def score(solution_strs):\n    raise KeyError('boom')\n")
    assert [reply["error"] for reply in about(raising, "a", "b")] == ["KeyError: 'boom'"] * 2


def test_a_group_function_must_return_a_grade_a_sample(asked):
    verifier = asked("def score(solution_strs):\n    return [1.0]\n")
    assert [reply["error"] for reply in about(verifier, "a", "b")] == [
        "ValueError: one grade a completion: got 1 for 2"
    ] * 2


def test_a_timeout_that_a_grader_raises_is_a_timeout(asked):
    verifier = asked("def score(solution_str):\n    raise TimeoutError('the database is slow')\n")
    assert about(verifier, "a") == [{"timeout": "TimeoutError: the database is slow"}]


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ("def score(text): return 1\n", {}, "nothing to give for 'text'; known are data_source, solution_str"),
        ("def score(solution_str, /): return 1\n", {}, "'solution_str' is positional only"),
        ("def score(solution_str): return 1\n", {"k": 1}, "takes no 'k'"),
        ("other = 1\n", {}, "has no function 'score'"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused_when_it_is_loaded(asked, source, settings, message):
    with pytest.raises(ValueError, match=message):
        asked(source, **settings)


def test_the_version_is_the_modules_else_a_digest_of_its_source(tmp_path):
    for name, source in (("stated", "VERSION = 7\n"), ("plain", ""), ("other", "# differs\n")):
        (tmp_path / f"{name}.py").write_text(source + "def score(solution_str): return 1.0\n")
    stated, plain, other = (Asked(f"{tmp_path}/{name}.py:score", {}).version for name in ("stated", "plain", "other"))
    assert stated == "7"
    assert len(plain) == 12
    assert plain != other


@pytest.mark.parametrize(
    ("result", "raw_score", "acc", "parts"),
    [
        (True, 1.0, 1.0, {}),
        (-1, -1.0, 0.0, {}),
        (0.5, 0.5, 0.5, {}),
        (7, 7.0, 1.0, {}),
        ({"score": 0.2}, 0.2, 0.2, {}),
        ({"right": 1, "short": 0.5}, 1.5, 1.0, {"right": 1.0, "short": 0.5}),
        ({"score": 0, "acc": True, "form": False}, 0.0, 1.0, {"form": 0.0}),
    ],
)
def test_results_become_grades(result, raw_score, acc, parts):
    grade = grade_of(result)
    assert (grade.raw_score, grade.acc, grade.parts) == (raw_score, acc, parts)


class Weird:
    """A number of a library that nobody knows."""

    def __float__(self):
        return 0.25


ONES = [
    *(kind(1) for kind in (np.float16, np.float32, np.float64, np.longdouble, np.int8, np.int64, np.uint64, np.bool_)),
    np.array(1.0), np.array([1], dtype=np.int32), np.array([[1.0]], dtype=np.float32), Decimal(1), Fraction(1), True, 1,
]  # fmt: skip


@pytest.mark.parametrize("one", ONES, ids=lambda one: type(one).__name__)
def test_a_number_of_any_library_is_a_number(one):
    for result in (one, {"score": one}, {"score": one, "acc": one}, {"part": one}):
        grade = grade_of(result)
        assert (grade.raw_score, grade.acc) == (1.0, 1.0)
        assert {type(value) for value in (grade.raw_score, grade.acc, *grade.parts.values())} == {float}
    assert grade_of({"score": 0, "part": one}).parts == {"part": 1.0}


def test_what_is_no_number_is_no_component():
    others = {"a": "1", "b": None, "c": [1.0], "d": np.array([1, 2]), "e": 1j, "f": np.complex64(1), "g": {}, "h": b"1"}
    assert grade_of({"score": 1, **others, "i": Weird()}).parts == {"i": 0.25}


@pytest.mark.parametrize("returned", ["np.float32(0.5)", "{'score': np.float32(0.5), 'n': np.int64(3)}",
                                      "{'n': 10 ** 400}", "np.array([0.5])"])  # fmt: skip
@pytest.mark.parametrize("form", ["def score(solution_str): return {}\n", "def score(solution_strs): return [{}]\n"])
def test_numpy_scores_cross_to_the_service(asked, returned, form):
    (reply,) = about(asked(f"import numpy as np\n{form.replace('{}', returned)}"), "1")
    assert json.loads(json.dumps(reply, allow_nan=False)) == reply
    if "400" in returned:
        assert reply["error"].startswith("ValueError: scores must be finite numbers, got {'raw_score': inf")
    else:
        assert reply["grade"]["raw_score"] == 0.5
        assert reply["grade"]["parts"] == ({"n": 3.0} if "'n'" in returned else {})


def test_a_module_may_give_a_grade_of_numpy_numbers(tmp_path, monkeypatch):
    source = "import numpy as np\nfrom services.reward.ports import Grade\nNAME, VERSION = 'm', '1'\n"
    source += "def prepare(): pass\ndef grade(*, question, text, finished):\n"
    source += "    return Grade(raw_score=np.float32(0.5), acc=np.bool_(True), extracted=np.int64(7), parts={1: np.int8(2)})\n"
    (tmp_path / "module_of_numpy_grades.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    (reply,) = about(Asked("module_of_numpy_grades", {}), "1")
    expected = {"raw_score": 0.5, "acc": 1.0, "extracted": "7", "status": "ok", "parts": {"1": 2.0}}
    assert json.loads(json.dumps(reply)) == {"grade": expected}


@pytest.mark.parametrize(
    "result",
    [
        None,
        1j,
        np.complex64(1),
        b"1",
        {"score": "1"},
        {"score": np.array([1.0, 2.0])},
        "1.0",
        [1.0],
        {},
        {"why": "text"},
        {"score": None},
        {"score": 1, "acc": "x"},
    ],
)
def test_what_is_no_number_is_refused_not_zero(result):
    with pytest.raises(ValueError, match=r"must be a number|no score and no components"):
        grade_of(result)


def test_a_graders_folder_is_first_on_the_path_while_it_is_imported_and_last_from_then_on(asked, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "colorsys.py").write_text("MINE = 1\n")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    verifier = asked("import colorsys\n\ndef score(solution_str):\n    return colorsys.MINE\n")
    assert scores(about(verifier, "2")) == [(1.0, 1.0)]
    assert sys.path[-1] == str(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1
    monkeypatch.delitem(sys.modules, "colorsys")
