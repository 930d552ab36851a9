"""From a row to the model's input: the chat template and the token ids. Truncates nothing, skips nothing."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from services.coordinator.prompts.rows import Message, PromptRow
from sluice.errors import ConfigError

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


class Renderer:
    """Applies one template with one tokenizer.

    `model` is the chat template of the model, with the generation prompt; plain text counts as one user turn. `none`
    joins the contents with newlines and leaves special tokens to the tokenizer, as a base model expects them.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, template: Literal["model", "none"]) -> None:
        """Raises ConfigError when the model has no chat template to apply."""
        if template == "model" and not tokenizer.chat_template:
            raise ConfigError(
                "data.template: must be none for this model, whose tokenizer has no chat template, got model"
            )
        self._tokenizer, self._template = tokenizer, template

    def render(self, row: PromptRow) -> Prompt:
        """Renders and tokenises one row."""
        text = self._chat(row.prompt) if self._template == "model" else _joined(row.prompt)
        # A chat template writes the special tokens itself.
        encoded = self._tokenizer(text, add_special_tokens=self._template == "none", return_attention_mask=False)
        return Prompt(
            prompt_id=row.prompt_id,
            data_source=row.data_source,
            token_ids=np.asarray(encoded["input_ids"], dtype=np.int32),
            text=text,
            ground_truth=row.ground_truth,
            extra_info_json=row.extra_info_json,
        )

    def _chat(self, prompt: str | tuple[Message, ...]) -> str:
        turns = (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt
        chat = [{"role": turn.role, "content": turn.content} for turn in turns]
        text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert isinstance(text, str), "tokenize=False gives text"
        return text


def load_tokenizer(path: str) -> "PreTrainedTokenizerBase":
    """Loads the tokenizer of a model folder as AutoTokenizer does. Raises ConfigError.

    AutoTokenizer imports torch wherever torch is installed (3 s and 260 MB, measured), and the coordinator does not need
    torch; so for a folder that names the generic class this class is loaded directly.
    """
    import transformers

    folder = Path(path).expanduser()
    try:
        loader = transformers.PreTrainedTokenizerFast if _names_generic_class(folder) else transformers.AutoTokenizer
        tokenizer = loader.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {path}: its tokenizer cannot be loaded: {error}") from error
    # transformers makes up an empty tokenizer for a folder that lacks a tokenizer and names a known model type.
    if not tokenizer("0", add_special_tokens=False)["input_ids"]:
        raise ConfigError(f"model.path: {path}: must have a tokenizer (tokenizer.json), got none")
    return tokenizer


def _names_generic_class(folder: Path) -> bool:
    """Whether transformers >= 5 wrote the folder with the generic class, which follows tokenizer.json exactly."""
    settings = folder / "tokenizer_config.json"
    if not (settings.is_file() and (folder / "tokenizer.json").is_file()):
        return False
    return json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class") == "TokenizersBackend"


def _joined(prompt: str | tuple[Message, ...]) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
