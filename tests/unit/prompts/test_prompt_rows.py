"""Rows are well formed, or refused in words that name the field."""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from services.coordinator.prompts.rows import Message, parse_row, parse_submitted
from sluice.errors import DataError
from tests.unit.prompts.prompt_cases import raw_row

CHAT_LIST = [{"role": "user", "content": "1+1="}]


def test_a_row_keeps_what_training_needs() -> None:
    chat = [{"role": "user", "content": "1+1="}]
    row = parse_row(raw_row(chat, ability="MATH", extra_info={"index": 3}), where="f: row 0")
    assert row.data_source == "sums"
    assert row.prompt == (Message(role="user", content="1+1="),)
    assert row.ground_truth == "2"
    assert row.extra_info_json == '{"index": 3}'


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("  34 ", "  34 "),
        (34, "34"),
        (125.0, "125"),
        (-0.0, "0"),
        (1e-7, "0.0000001"),
        (1e20, "1" + "0" * 20),
        (1e300, "1e+300"),
        (True, "true"),
        (0.5, "0.5"),
        (["1", "é"], '["1", "é"]'),
        (False, "false"),
    ],
)
def test_a_ground_truth_is_text_as_it_stands_or_json(answer: Any, text: str) -> None:
    assert parse_row(raw_row(answer=answer), where="f").ground_truth == text


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("text", "must be an object with data_source, prompt, reward_model, got 'text'"),
        (raw_row(data_source=None), "data_source: must be non-empty text, got None"),
        (raw_row(data_source=3), "data_source: must be non-empty text, got 3"),
        (raw_row(prompt=None), "prompt: must be text or a chat list of {role, content}, got None"),
        (raw_row(prompt=" \n"), "prompt: must be non-empty text"),
        (raw_row(prompt=[]), "prompt: must be text or a chat list of {role, content}, got []"),
        (raw_row(prompt=["hi"]), "prompt: every turn must be an object with role and content, got 'hi'"),
        (raw_row(prompt=[{"role": "user"}]), "prompt: content: must be non-empty text, got None"),
        (raw_row(prompt=[{"content": "x", "role": ""}]), "prompt: role: must be non-empty text, got ''"),
        (
            raw_row(prompt=[{"role": "user", "content": "x", "tool_calls": [1]}]),
            "prompt: a turn must have role and content only, got also tool_calls",
        ),
        (raw_row(reward_model=None), "reward_model.ground_truth: must be given, got reward_model = None"),
        (raw_row(reward_model={"style": "rule"}), "reward_model.ground_truth: must be given"),
        (raw_row(answer=""), "reward_model.ground_truth: must not be empty, got ''"),
        (raw_row(answer=" \n"), "reward_model.ground_truth: must not be empty"),
        (raw_row(extra_info="{oops"), "extra_info: must be JSON or empty"),
        (raw_row(extra_info="[1]"), "extra_info: must be an object, got [1]"),
        (raw_row(extra_info='"text"'), "extra_info: must be an object, got 'text'"),
        (raw_row(extra_info=3), "extra_info: must be an object, got 3"),
        (raw_row(prompt=[{"role": "user", "content": ""}]), "prompt: content: must be non-empty text, got ''"),
        (raw_row(answer=float("nan")), "reward_model.ground_truth: must be representable as JSON"),
        (raw_row(extra_info={"when": object()}), "extra_info: must be representable as JSON"),
    ],
)
def test_a_malformed_row_is_refused_by_place_and_field(raw: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_row(raw, where="set.jsonl: line 7")
    assert str(caught.value).startswith(f"set.jsonl: line 7: {message}")


def test_absent_keys_that_a_columnar_file_fills_with_null_are_no_error() -> None:
    chat = [{"role": "user", "content": "x", "tool_calls": None, "name": None}]
    assert parse_row(raw_row(chat, extra_info=None), where="f").extra_info_json == ""


def test_identity_is_data_source_and_prompt_alone() -> None:
    row = parse_row(raw_row("1+1=", "2"), where="f")
    assert parse_row(raw_row("1+1=", "3", extra_info={"i": 1}), where="f").prompt_id == row.prompt_id
    assert parse_row(raw_row("1+2=", "2"), where="f").prompt_id != row.prompt_id
    assert parse_row(raw_row("1+1=", "2", data_source="other"), where="f").prompt_id != row.prompt_id
    assert parse_row(raw_row([{"role": "user", "content": "1+1="}]), where="f").prompt_id != row.prompt_id
    assert row.prompt_id == "0e409b5da624194b80126ecbafc49e13"


def submitted(prompt: str, extra_info: str = "") -> dict[str, str]:
    return {"data_source": "sums", "prompt": prompt, "ground_truth": "2", "extra_info": extra_info}


@pytest.mark.parametrize(
    ("prompt", "parsed"),
    [
        ("1+1=", "1+1="),
        ("[1] is a list?", "[1] is a list?"),
        ("[1, 2]", "[1, 2]"),
        ('[{"role": "user", "content": "1+1="}]', (Message(role="user", content="1+1="),)),
    ],
)
def test_a_submitted_prompt_is_text_or_a_chat_as_json(prompt: str, parsed: object) -> None:
    assert parse_submitted(submitted(prompt, '{"a": 1}')).prompt == parsed


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (submitted(""), "prompt: must be non-empty text"),
        (submitted('[{"role": "user"}]'), "prompt: content: must be non-empty text"),
        (submitted("1+1=", "{"), "extra_info: must be JSON or empty"),
        (submitted("1+1=") | {"data_source": ""}, "data_source: must be non-empty text"),
    ],
)
def test_a_malformed_submission_is_refused(raw: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse_submitted(raw)


@pytest.mark.parametrize(
    ("extra_info", "text"),
    [
        ('{"index": 3}', '{"index": 3}'),
        ("", ""),
        ("null", ""),
        ({"a": float("nan"), "b": [float("inf"), 1.5]}, '{"a": null, "b": [null, 1.5]}'),
        ('{"a": NaN}', '{"a": null}'),
    ],
)
def test_extra_info_may_be_json_text_and_hold_gaps(extra_info: Any, text: str) -> None:
    assert parse_row(raw_row(extra_info=extra_info), where="f").extra_info_json == text


CHAT = (Message(role="user", content="1+1="),)


@pytest.mark.parametrize(
    "raw",
    [
        raw_row('[{"role": "user", "content": "1+1="}]'),
        raw_row(b'[{"role": "user", "content": "1+1="}]'),
        raw_row([{"role": b"user", "content": b"1+1="}]),
        raw_row(CHAT_LIST, reward_model='{"style": "rule", "ground_truth": "2"}'),
        raw_row(CHAT_LIST, reward_model=b'{"ground_truth": 2}'),
        raw_row(CHAT_LIST, data_source=b"sums"),
        raw_row(CHAT_LIST, extra_info=b'{"a": 1}'),
    ],
)
def test_files_made_from_tables_have_json_text_and_bytes(raw: dict[str, Any]) -> None:
    row = parse_row(raw, where="f")
    assert (row.data_source, row.prompt, row.ground_truth) == ("sums", CHAT, "2")


@pytest.mark.parametrize("prompt", ['[{"a": 1}]', "[1, 2]", "[{", '["role"]', "[" * 100_000])
def test_a_prompt_that_only_looks_like_a_chat_is_text(prompt: str) -> None:
    assert parse_row(raw_row(prompt), where="f").prompt == prompt


def test_extra_info_of_a_columnar_file_becomes_json() -> None:
    info = {
        "on": date(2024, 1, 2),
        "at": datetime(2024, 1, 2, 3, tzinfo=UTC),
        "took": timedelta(minutes=1),
        "price": Decimal("1.50"),
    }
    row = parse_row(raw_row(extra_info=info | {"count": Decimal("3"), "name": "é".encode()}), where="f")
    assert json.loads(row.extra_info_json) == {
        "on": "2024-01-02", "at": "2024-01-02T03:00:00+00:00", "took": 60.0, "price": 1.5, "count": 3, "name": "é",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (raw_row(answer="\u200b\ufeff"), "reward_model.ground_truth: must not be empty"),
        (raw_row("\u200b"), "prompt: must be non-empty text"),
        (raw_row(b"\xff"), "prompt: must be text or a chat list of {role, content}, got b'"),
        (raw_row(data_source="s" * 201), "data_source: must be a name of at most 200 characters on one line"),
        (raw_row(data_source="a\nb"), "data_source: must be a name of at most 200 characters on one line"),
        (raw_row(extra_info={"image": b"\xff\xd8"}), "extra_info: must be representable as JSON: got b'"),
        (raw_row(images=["a.png"]), "images: must be empty, models are text only, got ['a.png']"),
        (raw_row(reward_model="2"), "reward_model.ground_truth: must be given, got reward_model = '2'"),
        (raw_row(reward_model="{"), "reward_model.ground_truth: must be given, got reward_model = '{'"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_by_field(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_row(raw, where="f")
    assert str(caught.value).startswith(f"f: {message}")


def test_an_empty_system_turn_stays() -> None:
    chat = [{"role": "system", "content": ""}, {"role": "user", "content": "1+1="}]
    assert parse_row(raw_row(chat), where="f").prompt == (
        Message(role="system", content=""),
        Message(role="user", content="1+1="),
    )
