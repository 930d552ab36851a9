"""The built-in environments, in this process."""

import json
from pathlib import Path

import pytest

from services.coordinator.prompts.named_sources import open_source
from services.reward.environments.builtin.calculator import Calculator, calculate
from services.reward.environments.builtin.search import Search
from services.reward.environments.builtin.second_try import SecondTry
from services.reward.environments.builtin.tool_calls import MOST_ANSWERED
from sluice.environments import Message, Row, ToolCall


def turn(text: str = "", **calls: str) -> Message:
    return Message(
        role="assistant",
        content=text,
        tool_calls=tuple(ToolCall(id=name, name=name, arguments_json=given) for name, given in calls.items()),
    )


def row(**of: object) -> Row:
    return Row(
        **{  # type: ignore[arg-type]
            "messages": (Message(role="user", content="?"),),
            "data_source": "s",
            "ground_truth": "125",
            "extra_info": {},
            "arguments": {},
            "seed": 1,
            "max_turns": 4,
            **of,
        }
    )


@pytest.mark.parametrize(
    ("expression", "said"),
    [
        ("(17 + 4) * 3", "63"),
        ("7 / 2", "3.5"),
        ("6 / 3", "2"),
        ("-2 ** 3 % 5", "2"),
        ("sqrt(16) + max(1, 2)", "6"),
        ("2 ** 64", "18446744073709551616"),
    ],
)
def test_the_calculator_computes(expression: str, said: str) -> None:
    assert calculate(expression) == said


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("1 +", "no arithmetic"),
        ("(" * 900, "no arithmetic"),
        ("1 / 0", "division by zero"),
        ("9 ** 9 ** 9", "too large"),
        ("1e300 * 1e300", "not finite"),
        ("(-8) ** 0.5", "no real number"),
        ("2 ^ 3", "as \\*\\*"),
        ("__import__('os')", "only numbers"),
        ("'a' * 9", "only numbers"),
        ("True + 1", "only numbers"),
        ("sqrt(-1)", "domain|nonnegative"),
        ("10.0 ** 400", "Numerical|too large|range"),
    ],
)
def test_what_is_no_arithmetic_is_a_line_for_the_policy(expression: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        calculate(expression)


def test_whatever_is_wrong_with_a_call_is_told_and_never_raised() -> None:
    calculator = Calculator()
    assert [tool.name for tool in calculator.open(row()).tools] == ["calculate"]
    assert calculator.step(turn("63")).done
    (right,) = calculator.step(turn(calculate='{"expression": "6*7"}')).messages
    assert (right.role, right.content, right.tool_call_id, right.name) == ("tool", "42", "calculate", "calculate")
    for given, said in {
        "{": "a JSON object",
        "[1]": "a JSON object",
        "{}": "expression must be a text",
        '{"expression": "1/0"}': "error: division by zero",
        '{"expression": "' + "1+" * 600 + '1"}': "at most 1000 characters",
    }.items():
        assert said in calculator.step(turn(calculate=given)).messages[0].content
    assert "no tool 'other'" in calculator.step(turn(other="{}")).messages[0].content
    many = Message(role="assistant", content="", tool_calls=turn(calculate='{"expression": "1"}').tool_calls * 200)
    answers = calculator.step(many).messages
    assert (len(answers), answers[0].content) == (MOST_ANSWERED, "1")
    assert "at most 16 calls" in answers[-1].content


def test_search_finds_the_passage_with_the_rare_words(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "rivers.md").write_text(
        "The Rhine is a river.\n\nThe Danube is a river and ends in the Black Sea."
    )
    (tmp_path / "hills.txt").write_text("A hill is no river.\n\n" + "The hill is high. " * 100)
    search = Search(folder=str(tmp_path), results=1, passage_chars=60)
    (answer,) = search.step(turn(search='{"query": "where does the danube end"}')).messages
    assert answer.content == "[deep/rivers.md]\nThe Danube is a river and ends in the Black Sea."
    assert search.step(turn(search='{"query": "zebra"}')).messages[0].content == "nothing was found"
    with pytest.raises(ValueError, match="has no text"):
        Search(folder=str(tmp_path / "deep" / ".."), results=1, passage_chars=60) and Search(folder=_empty(tmp_path))


def _empty(tmp_path: Path) -> str:
    (tmp_path / "empty").mkdir()
    return str(tmp_path / "empty")


def test_a_wrong_answer_gets_a_second_try_and_no_third() -> None:
    one = SecondTry(later=0.5)
    assert one.open(row()) is None
    first = one.step(turn("Answer: 124"))
    assert (first.done, first.messages[0].role) == (False, "user")
    end = one.step(turn("Answer: 125"))
    assert end.score is not None
    assert (end.done, end.score.score, end.score.acc, end.score.parts) == (True, 0.5, 1.0, {"tries": 2.0})
    other = SecondTry()
    other.open(row(max_turns=1))
    wrong = other.step(turn("Answer: 1"))
    assert wrong.score is not None
    assert (wrong.done, wrong.score.score, wrong.score.acc) == (True, 0.0, 0.0)
    with pytest.raises(ValueError, match="grader: must be one of"):
        SecondTry(grader="judge")


@pytest.mark.needs("reasoning-gym")
def test_a_reasoning_gym_task_gets_a_second_try_from_its_own_scorer() -> None:
    task = open_source(["reasoning-gym:chain_sum"], seed=0, held_out=False).row(0)
    one = SecondTry(later=0.5)
    one.open(row(data_source=task.data_source, ground_truth=task.ground_truth))
    assert one.step(turn("<answer>nothing</answer>")).messages[0].role == "user"
    end = one.step(turn(f"<answer>{json.loads(task.ground_truth)['answer']}</answer>"))
    assert end.score is not None
    assert (end.done, end.score.score, end.score.acc, end.score.parts) == (True, 0.5, 1.0, {"tries": 2.0})
