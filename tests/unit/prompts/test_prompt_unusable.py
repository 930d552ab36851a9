"""Rows that cannot become a prompt are skipped, counted and named; a broken tokenizer or template is one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.coordinator.prompts.data_files import read_files
from services.coordinator.prompts.render import Renderer, Unusable, load_tokenizer
from services.coordinator.prompts.stream import PromptStream
from sluice.errors import ConfigError, DataError
from tests.unit.prompts.prompt_cases import character_tokenizer, raw_row

HALF = "\ud83d"
REFUSES_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def stream(
    path: Path, rows: list[dict[str, Any]], *, template: str | None = None, max_prompt_length: int = 50
) -> PromptStream:
    file = path / "set.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tokenizer = character_tokenizer()
    tokenizer.chat_template = template
    renderer = Renderer(tokenizer, template="model" if template else "none")
    return PromptStream(
        read_files([str(file)]), renderer=renderer, seed=0, shuffle=False, max_prompt_length=max_prompt_length
    )


@pytest.mark.parametrize(
    "bad",
    [
        raw_row(HALF),
        raw_row(chat(("user", f"1{HALF}"))),
        raw_row("1+2=", HALF),
        raw_row("1+2=", extra_info={"note": HALF}),
        raw_row("1+2=", data_source=f"s{HALF}"),
    ],
)
def test_half_of_a_surrogate_pair_is_skipped_and_named(tmp_path: Path, bad: dict[str, Any]) -> None:
    prompts = stream(tmp_path, [raw_row("1+1="), bad, raw_row("2+2=")])
    assert [prompt.text for prompt in prompts.take(9)] == ["1+1=", "2+2="]
    (reason,) = prompts.unusable.values()
    assert reason.startswith(f"{tmp_path}/set.jsonl: line 2: must be encodable as UTF-8")
    assert prompts.next(1)[0].text == "2+2="
    assert prompts.describe()["skipped_unusable"] == 1


def test_a_row_that_the_template_refuses_is_skipped_and_named(tmp_path: Path) -> None:
    rows = [raw_row(chat(("user", "a"))), raw_row(chat(("system", "b"), ("user", "c"))), raw_row("d")]
    prompts = stream(tmp_path, rows, template=REFUSES_SYSTEM)
    prompts.look_at_every_row()
    (reason,) = prompts.unusable.values()
    assert "set.jsonl: line 2: the chat template refuses the row: TemplateError: no system role" in reason
    assert [prompt.text for prompt in prompts.take(9)] == ["a", "d"]


KNOWS_THREE_ROLES = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}<{{ m.role }}> {{ m.content | trim }}\n"
    "{% endif %}{% endfor %}<assistant>"
)


def test_a_row_whose_turn_the_template_leaves_out_is_skipped_and_named(tmp_path: Path) -> None:
    rows = [
        raw_row(chat(("human", "1+1="))),
        raw_row(chat(("system", ""), ("user", " b \n c "), ("assistant", "d"), ("user", "e"))),
        raw_row(chat(("user", "1+2="), ("tool", "3+3="))),
    ]
    prompts = stream(tmp_path, rows, template=KNOWS_THREE_ROLES, max_prompt_length=200)
    prompts.look_at_every_row()
    assert [reason.partition("line ")[2] for reason in prompts.unusable.values()] == [
        "1: the chat template leaves out the turn of role 'human'",
        "3: the chat template leaves out the turn of role 'tool'",
    ]
    assert len(prompts.take(9)) == 1


def test_a_row_that_the_tokenizer_refuses_is_skipped_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = stream(tmp_path, [raw_row("a"), raw_row("b")])
    tokenizer = character_tokenizer()

    def tokenize(text: str, **options: Any) -> Any:
        if text == "a":
            raise Exception("no token for it")  # what the package tokenizers raises
        return tokenizer(text, **options)

    monkeypatch.setattr(prompts._renderer, "_tokenizer", tokenize)
    assert prompts.next(0)[0].text == "b"
    assert "line 1: the tokenizer refuses the text: Exception: no token for it" in next(iter(prompts.unusable.values()))


def test_a_look_at_every_row_counts_each_row_once(tmp_path: Path) -> None:
    prompts = stream(tmp_path, [raw_row("1" * 9), raw_row(HALF), raw_row("1"), raw_row("2" * 9)], max_prompt_length=5)
    prompts.look_at_every_row()
    facts = prompts.describe()
    assert (facts["skipped_too_long"], facts["skipped_unusable"]) == (2, 1)


def test_a_set_without_any_usable_row_is_refused_with_the_reason_of_the_first(tmp_path: Path) -> None:
    prompts = stream(tmp_path, [raw_row(HALF), raw_row(f"2{HALF}")])
    with pytest.raises(DataError, match=r"none of 3 rows can become a prompt: .*set\.jsonl: line 1: must be encodable"):
        prompts.next(0)


def test_a_submitted_prompt_that_the_template_refuses_is_refused(tmp_path: Path) -> None:
    row = {"data_source": "s", "prompt": json.dumps(chat(("system", "b"))), "ground_truth": "2", "extra_info": ""}
    with pytest.raises(Unusable, match="the chat template refuses the row"):
        stream(tmp_path, [raw_row("a")], template=REFUSES_SYSTEM).render(row)


def test_a_template_that_is_not_valid_is_one_line() -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}\n{{ m.content }"
    with pytest.raises(ConfigError, match=r"^model\.path: the model's chat template is not valid: line 2: ") as caught:
        Renderer(tokenizer, template="model")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *(
            ("tokenizer.json", text)
            for text in ("", "{", "{}", '{"version": "1.0", "model": {"type": "WordLevel"}}', "\x00")
        ),
        *(("tokenizer_config.json", text) for text in ("", "{", "\x00", "[]")),
    ],
)
def test_a_broken_tokenizer_file_is_one_line(tmp_path: Path, name: str, content: str) -> None:
    character_tokenizer().save_pretrained(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=r"^model\.path: ") as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_look_at_every_row_keeps_prompts_of_every_data_source_and_odd_ground_truths(tmp_path: Path) -> None:
    rows = [raw_row(f"{n}", str(n), data_source="plain") for n in range(5)]
    rows += [raw_row("5", ["5"], data_source="plain"), raw_row("6", '"6"', data_source="other")]
    prompts = stream(tmp_path, rows)
    prompts.look_at_every_row()
    kept = {key: [prompt.text for prompt in kept] for key, kept in prompts.kept_for_the_check.items()}
    assert kept == {("plain", False): ["0", "1"], ("plain", True): ["5"], ("other", True): ["6"]}
