"""Rows, sources and a tokenizer small enough to read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from services.coordinator.prompts.render import Renderer
from services.coordinator.prompts.rows import PromptRow
from services.coordinator.prompts.stream import PromptStream

CHAT_TEMPLATE = (
    "{% for m in messages %}<s>{{ m.role }}:{{ m.content }}{% endfor %}{% if add_generation_prompt %}<s>bot:{% endif %}"
)
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789+-*/=:?<>. \n"


def raw_row(prompt: Any = "1+1=", answer: Any = "2", **others: Any) -> dict[str, Any]:
    """A row with verl's columns."""
    row = {"data_source": "sums", "prompt": prompt, "reward_model": {"style": "rule", "ground_truth": answer}}
    return row | others


def character_tokenizer(*, chat: bool = False, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a character; `bos` prepends <s> as base models of some families want it."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", pad_token="<pad>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


@dataclass(frozen=True)
class ListSource:
    """Plain-text prompts from a list; endless when it says so."""

    prompts: Sequence[str]
    endless: bool = False

    @property
    def size(self) -> int | None:
        return None if self.endless else len(self.prompts)

    def row(self, index: int) -> PromptRow:
        prompt = self.prompts[index % len(self.prompts)]
        return PromptRow(data_source="sums", prompt=prompt, ground_truth="2")

    def describe(self) -> dict[str, str | int]:
        return {"rows": len(self.prompts)}


def stream_of(source: ListSource, *, seed: int = 0, shuffle: bool = True, max_prompt_length: int = 100) -> PromptStream:
    """A stream without a chat template."""
    return PromptStream(
        source,
        renderer=Renderer(character_tokenizer(), template="none"),
        seed=seed,
        shuffle=shuffle,
        max_prompt_length=max_prompt_length,
    )
