"""One prompt as its author wrote it, before any template or tokenizer, and the check of its form.

The columns are verl's: `data_source`, `prompt` (a chat list or plain text), `reward_model.ground_truth` and `extra_info`;
`ability` and `reward_model.style` are accepted and not used. A chat, `reward_model` and `extra_info` may be JSON text too, as
in files made from tables, and text may be bytes of UTF-8. Images, videos and sounds are refused. Columns of Sluice's own:
`environment`, the name of the environment that the row's samples are episodes in, and `env_args`, an object for it.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, Protocol

from sluice.environments import Message
from sluice.errors import DataError
from sluice.limits import NAME_CHARACTERS
from sluice.strict_json import finite

COLUMNS = ("data_source", "prompt", "ability", "reward_model", "extra_info", "environment", "env_args")
REQUIRED_COLUMNS = ("data_source", "prompt", "reward_model")
MEDIA = ("images", "videos", "audios")
"""verl's columns of what no text-only model sees."""
ARGUMENTS_CHARACTERS = 1 << 20
"""Longest env_args as JSON: every turn of a group's episodes stands beside them in a message."""


def _in_json(value: object) -> object:
    """A value of a columnar file as JSON has it. Raises TypeError for a value without such a form."""
    if isinstance(value, Decimal) and value.is_finite():
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, bytes) and isinstance(text := _decoded(value), str):
        return text
    raise TypeError(f"got {_short(value)}")


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=_in_json).encode


_NO_WIDTH = frozenset("\u200b\u200c\u200d\u2060\ufeff")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRow:
    """One row of a data set."""

    data_source: str
    prompt: str | tuple[Message, ...]
    ground_truth: str
    """A string unchanged, a number as people write it, anything else as JSON."""
    extra_info_json: str = ""
    """Empty for a row without extra_info."""
    environment: str = ""
    """Empty for a row that names none: data.environment then."""
    environment_args_json: str = ""
    """Empty for a row without env_args."""
    where: str = field(default="", compare=False)
    """File and line, for people; empty for a row that is in no file."""
    prompt_id: str = field(init=False)
    """Hash of data source and prompt, and of environment and arguments if there are any: rows that share it are duplicates."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_id", _prompt_id(self))


class PromptSource(Protocol):
    """Rows by index; the same index gives the same row in every process."""

    @property
    def size(self) -> int | None:
        """Number of rows; None when endless."""
        ...

    def row(self, index: int) -> PromptRow:
        """Row `index`, 0-based. Raises DataError without such a row."""
        ...

    def describe(self) -> dict[str, str | int]:
        """Facts for the log at start."""
        ...


def parse_row(raw: object, *, where: str) -> PromptRow:
    """Checks one row with verl's columns. Raises DataError, which starts with `where` and says what is wrong."""
    try:
        if not isinstance(raw, Mapping):
            raise DataError(f"must be an object with {', '.join(REQUIRED_COLUMNS)}, got {_short(raw)}")
        _check_media(raw)
        return PromptRow(
            data_source=_name(raw.get("data_source"), "data_source"),
            prompt=_prompt(raw.get("prompt")),
            ground_truth=_ground_truth(raw.get("reward_model")),
            extra_info_json=_object(raw.get("extra_info"), "extra_info"),
            environment=_environment(raw.get("environment")),
            environment_args_json=_arguments(raw.get("env_args")),
            where=where,
        )
    except DataError as error:
        raise DataError(f"{where}: {error}{_keys_in_place(raw)}") from None


def _keys_in_place(raw: object) -> str:
    """The keys of a row that lacks a required key, for a message."""
    if not isinstance(raw, Mapping) or not raw or all(name in raw for name in REQUIRED_COLUMNS):
        return ""
    return f"; a row has {', '.join(REQUIRED_COLUMNS)}, this one has {_short(', '.join(map(str, raw)))}"


def _check_media(raw: Mapping[Any, Any]) -> None:
    if found := [name for name in MEDIA if raw.get(name)]:
        raise DataError(f"{found[0]}: must be empty, models are text only, got {_short(raw[found[0]])}")


def parse_submitted(raw: Mapping[str, str]) -> PromptRow:
    """A prompt that a user submits to a running run, every field a string. Raises DataError.

    `prompt` is plain text or a JSON chat list; `extra_info` and `env_args` are JSON or empty, `environment` is a name or
    empty, and the last two may be absent; `data_source` and `ground_truth` as above.
    """
    return PromptRow(
        data_source=_name(raw["data_source"], "data_source"),
        prompt=_prompt(raw["prompt"]),
        ground_truth=raw["ground_truth"],
        extra_info_json=_object(raw["extra_info"], "extra_info"),
        environment=_environment(raw.get("environment")),
        environment_args_json=_arguments(raw.get("env_args")),
    )


def _name(raw: object, column: str) -> str:
    """A name: it stands in metrics and in logs."""
    name = _text(raw, column)
    if len(name) > NAME_CHARACTERS or any(character < " " for character in name):
        raise DataError(
            f"{column}: must be a name of at most {NAME_CHARACTERS} characters on one line, got {_short(name)}"
        )
    return name


def _environment(raw: object) -> str:
    """The name; empty for a row without one, because columnar files fill absent values with null."""
    return "" if raw is None or raw in ("", b"") else _name(raw, "environment")


def _arguments(raw: object) -> str:
    written = _object(raw, "env_args")
    if len(written) > ARGUMENTS_CHARACTERS:
        raise DataError(
            f"env_args: must have at most {ARGUMENTS_CHARACTERS} characters as JSON, got {len(written)}; let the environment "
            "read what is large from a file that env_args names"
        )
    return written


def _chat_in(text: str) -> object:
    """The chat list that a text is in JSON, or the text: one that happens to start with a bracket."""
    if text.lstrip().startswith("["):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(text)
            if isinstance(value, list) and value and all(isinstance(turn, dict) and "role" in turn for turn in value):
                return value
    return text


def _prompt(raw: object) -> str | tuple[Message, ...]:
    raw = _decoded(raw)
    raw = _chat_in(raw) if isinstance(raw, str) else raw
    if isinstance(raw, str):
        return _text(raw, "prompt")
    if not isinstance(raw, list) or not raw:
        raise DataError(f"prompt: must be text or a chat list of {{role, content}}, got {_short(raw)}")
    return tuple([_message(turn) for turn in raw])


def _message(raw: object) -> Message:
    """One turn of a chat. Columnar files fill absent keys with null, so only unknown keys with a value are refused."""
    if not isinstance(raw, Mapping):
        raise DataError(f"prompt: every turn must be an object with role and content, got {_short(raw)}")
    unknown = sorted(str(key) for key, value in raw.items() if value is not None and key not in ("role", "content"))
    if unknown:
        raise DataError(f"prompt: a turn must have role and content only, got also {', '.join(unknown)}")
    role, content = _text(raw.get("role"), "prompt: role"), raw.get("content")
    if role == "system" and isinstance(content, str) and _is_blank(content):
        return Message(role=role, content=content)  # an empty system turn takes the place of the template's own one
    return Message(role=role, content=_text(content, "prompt: content"))


def _ground_truth(reward_model: object) -> str:
    reward_model = _decoded(reward_model)
    if isinstance(reward_model, str) and reward_model.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            reward_model = json.loads(reward_model)
    value = _decoded(reward_model.get("ground_truth")) if isinstance(reward_model, Mapping) else None
    if value is None:
        raise DataError(f"reward_model.ground_truth: must be given, got reward_model = {_short(reward_model)}")
    if isinstance(value, str):
        if _is_blank(value):
            raise DataError(f"reward_model.ground_truth: must not be empty, got {value!r}; no answer would match it")
        return value
    if isinstance(value, float | Decimal) and math.isfinite(value):
        return _as_people_write(value)
    if isinstance(value, date | time):
        return value.isoformat()
    return _to_json(value, "reward_model.ground_truth")


def _as_people_write(value: float | Decimal) -> str:
    """125.0 as 125 and 1e-07 as 0.0000001; very large and very small numbers in Python's form."""
    if value == 0:
        return "0"  # also for -0.0
    return f"{Decimal(str(value)).normalize():f}" if 1e-9 <= abs(value) < 1e21 else str(value)


def _object(value: object, name: str) -> str:
    """A mapping, or JSON text of one, as JSON; numbers that are not finite, with which columnar files mark gaps, are null."""
    value = _decoded(value)
    if isinstance(value, str):
        return _checked_json(value, name)
    if value is None:
        return ""
    if not isinstance(value, Mapping):
        raise DataError(f"{name}: must be an object, got {_short(value)}")
    return _to_json(finite(value), name)


def _checked_json(text: str, name: str) -> str:
    if not text.strip():
        return ""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: must be JSON or empty: {error}, got {_short(text)}") from error
    if isinstance(value, str):
        raise DataError(f"{name}: must be an object, got {_short(value)}")
    return _object(value, name)


def _text(value: object, name: str) -> str:
    value = _decoded(value)
    if not isinstance(value, str) or _is_blank(value):
        raise DataError(f"{name}: must be non-empty text, got {_short(value)}")
    return value


def _decoded(value: object) -> object:
    """The text of bytes that are UTF-8, which is how some writers of Parquet store text; anything else unchanged."""
    if isinstance(value, bytes):
        with contextlib.suppress(UnicodeDecodeError):
            return value.decode()
    return value


def _is_blank(text: str) -> bool:
    """Whether a reader would see nothing; characters of no width count as nothing."""
    return not any(character not in _NO_WIDTH and not character.isspace() for character in text)


def _to_json(value: object, name: str) -> str:
    try:
        return _encode(value)
    except (TypeError, ValueError, RecursionError) as error:
        if isinstance(value, float):
            raise DataError(f"{name}: must be representable as JSON, got {value}; no answer would match it") from error
        raise DataError(f"{name}: must be representable as JSON: {error}") from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _prompt_id(row: PromptRow) -> str:
    prompt = row.prompt
    content = prompt if isinstance(prompt, str) else [[message.role, message.content] for message in prompt]
    acted = [row.environment, row.environment_args_json] if row.environment or row.environment_args_json else []
    written = _encode([row.data_source, content, *acted])
    return hashlib.blake2b(written.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
