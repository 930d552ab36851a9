"""From a row to the model's input: the chat template and the token ids. Truncates nothing, skips nothing: a row that cannot
become a prompt is an error, which the stream counts."""

import json
import os
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from services.coordinator.prompts.rows import PromptRow
from sluice.environments import Message
from sluice.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prompt:
    """One prompt in the model's form."""

    prompt_id: str
    data_source: str
    token_ids: np.ndarray
    """[P] int32."""
    text: str
    """The tokenised text, for people and graders."""
    ground_truth: str
    extra_info_json: str
    environment: str = ""
    """Empty: single answers."""
    environment_args_json: str = ""
    messages: tuple[Message, ...] = ()
    """The row's chat, with an environment alone: the environment may begin otherwise."""


class Unusable(DataError):
    """A row cannot become a prompt: its text is not representable, its template refuses it, or the tokenizer does; or the
    recipe lacks the row's environment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environments:
    """Which environments rows may name."""

    names: Collection[str] = ()
    default: str = ""
    """Of rows that name none; empty: they ask for single answers."""

    def placed(self, row: PromptRow) -> PromptRow:
        """The row with its environment. Raises Unusable, with the row's place, for an environment that the recipe lacks."""
        where = f"{row.where}: " if row.where else ""
        name = row.environment or self.default
        if name and name not in self.names:
            known = ", ".join(sorted(self.names)) or "none"
            raise Unusable(f"{where}environment: must be one of the recipe's environments ({known}), got {name!r}")
        if row.environment_args_json and not name:
            raise Unusable(
                f"{where}env_args: needs an environment; name it in the row, or in data.environment for all rows"
            )
        return row if name == row.environment else replace(row, environment=name)


class Renderer:
    """Applies one template with one tokenizer.

    `model` is the chat template of the model, with the generation prompt; plain text counts as one user turn. `none`
    joins the contents with newlines and leaves special tokens to the tokenizer, as a base model expects them.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        template: Literal["model", "none"],
        environments: Environments | None = None,
    ) -> None:
        """Raises ConfigError when the model has no chat template to apply, or a template that is not valid."""
        if template == "model" and not tokenizer.chat_template:
            raise ConfigError(
                "data.template: must be none for this model, whose tokenizer has no chat template, got model"
            )
        self._tokenizer, self._template = tokenizer, template
        self._environments = environments or Environments()
        if template == "model":
            self._check_template()

    def render(self, row: PromptRow) -> Prompt:
        """Renders and tokenises one row. Raises Unusable with the row's place."""
        row = self._environments.placed(row)
        where = f"{row.where}: " if row.where else ""
        try:
            text = self._text(row)
            token_ids = self._token_ids(text)
        except Unusable as error:
            raise Unusable(f"{where}{error}") from error.__cause__
        return Prompt(
            prompt_id=row.prompt_id,
            data_source=row.data_source,
            token_ids=token_ids,
            text=text,
            ground_truth=row.ground_truth,
            extra_info_json=row.extra_info_json,
            environment=row.environment,
            environment_args_json=row.environment_args_json,
            messages=_as_chat(row.prompt) if row.environment else (),
        )

    def environment_of(self, row: PromptRow) -> str:
        """The environment of a row; empty for single answers. Raises Unusable."""
        return self._environments.placed(row).environment

    def _text(self, row: PromptRow) -> str:
        """The text to tokenise. Raises Unusable."""
        turns = () if isinstance(row.prompt, str) else row.prompt
        fields = (row.data_source, _joined(row.prompt), row.ground_truth, row.extra_info_json)
        acted = (row.environment, row.environment_args_json, *(turn.role for turn in turns))
        if not all(map(_is_encodable, (*fields, *acted))):
            raise Unusable("must be encodable as UTF-8, but holds half of a surrogate pair")
        if self._template == "none":
            return _joined(row.prompt)
        try:
            text = self._chat(row.prompt)
        except Exception as error:  # a template is a program, and may raise anything for a row
            raise Unusable(f"the chat template refuses the row: {_in_short(error)}") from error
        if not _is_encodable(text):
            raise Unusable("the chat template writes text that is not encodable as UTF-8")
        if (lost := _lost_turn(row.prompt, text)) is not None:
            raise Unusable(f"the chat template leaves out the turn of role {lost!r}")
        return text

    def _token_ids(self, text: str) -> np.ndarray:
        """[P] int32. Raises Unusable."""
        try:
            # A chat template writes the special tokens itself.
            encoded = self._tokenizer(text, add_special_tokens=self._template == "none", return_attention_mask=False)
        except Exception as error:  # tokenizers raises plain Exception
            raise Unusable(f"the tokenizer refuses the text: {_in_short(error)}") from error
        if not encoded["input_ids"]:
            raise Unusable("the tokenizer makes no token of the text")
        return np.asarray(encoded["input_ids"], dtype=np.int32)

    def _check_template(self) -> None:
        """Raises ConfigError for a template that is no valid template; one that refuses a row is the row's matter."""
        from jinja2 import TemplateSyntaxError

        try:
            self._chat("?")
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"model.path: the model's chat template is not valid: line {error.lineno}: {_in_short(error)}"
            ) from error
        except Exception:  # noqa: BLE001 - a template may refuse this row and take others
            return

    def _chat(self, prompt: str | tuple[Message, ...]) -> str:
        chat = [{"role": turn.role, "content": turn.content} for turn in _as_chat(prompt)]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str), "tokenize=False gives text"
        return text


def load_tokenizer(path: str) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer of a model folder as AutoTokenizer does. Raises ConfigError.

    AutoTokenizer imports torch wherever torch is installed (3 s and 260 MB, measured), and the coordinator does not need
    torch; so for a folder that names the generic class this class is loaded directly.
    """
    import transformers

    folder = Path(os.path.expanduser(path))
    try:
        loader: Any = (
            transformers.PreTrainedTokenizerFast if _names_generic_class(folder) else transformers.AutoTokenizer
        )
        tokenizer = loader.from_pretrained(folder)
        # transformers makes up an empty tokenizer for a folder that lacks a tokenizer and names a known model type.
        empty = not tokenizer("0", add_special_tokens=False)["input_ids"]
    except Exception as error:  # tokenizers raises plain Exception for a broken file, transformers anything
        raise ConfigError(f"model.path: {path}: its tokenizer cannot be loaded: {_in_short(error)}") from error
    if empty:
        raise ConfigError(f"model.path: {path}: must have a tokenizer (tokenizer.json), got none")
    return tokenizer


def _names_generic_class(folder: Path) -> bool:
    """Whether transformers >= 5 wrote the folder with the generic class, which follows tokenizer.json exactly."""
    settings = folder / "tokenizer_config.json"
    if not (settings.is_file() and (folder / "tokenizer.json").is_file()):
        return False
    return json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") == "TokenizersBackend"


def _as_chat(prompt: str | tuple[Message, ...]) -> tuple[Message, ...]:
    return (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt


def _joined(prompt: str | tuple[Message, ...]) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)


def _lost_turn(prompt: str | tuple[Message, ...], text: str) -> str | None:
    """The role of the first turn that a template has left out, as many do with roles that they do not know.

    Blanks do not count. Templates may well shorten what the model said, and have their own ways with a system turn.
    """
    written = "".join(text.split())
    asked = () if isinstance(prompt, str) else prompt
    lost = (turn.role for turn in asked if "".join(turn.content.split()) not in written)
    return next((role for role in lost if role not in ("assistant", "system")), None)


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _in_short(error: Exception) -> str:
    """The error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
