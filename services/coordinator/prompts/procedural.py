"""Endless sources: prompts that a program makes, `mixadd3:SPLIT`, `products:SPLIT` and `reasoning-gym:TASK`.

Held-out prompts are never trained, whatever the seeds: the sources partition by a hash of the prompt's text.
"""

import functools
import hashlib
import importlib.util
import json
import zlib
from dataclasses import dataclass
from typing import Any

from services.coordinator.prompts.rows import PromptRow
from sluice.environments import Message
from sluice.errors import DataError
from sluice.tasks import mixadd3, products

REASONING_GYM = "reasoning-gym:"
MIXADD3 = "mixadd3:"
PRODUCTS = "products:"

# Entries of one reasoning-gym data set. A task may prepare all of its entries when it is made, so a set has to be
# small; the next block of indices takes another set.
_BLOCK = 1024
# Tries to find an entry of the wanted split: 1/8 is held out, so all fail with probability (7/8)^256 = 1e-15.
_TRIES = 256
_HELD_OUT_OF = 8

_ANSWER_FORMAT = "Give the final answer between <answer> and </answer>."


@dataclass(frozen=True, kw_only=True, slots=True)
class Mixadd3Source:
    """The addition task of the demo (sluice/tasks/mixadd3.py)."""

    split: str
    seed: int

    @property
    def size(self) -> None:
        """None, because the source is endless."""
        return

    def row(self, index: int) -> PromptRow:
        """Prompt `index` of the split."""
        prompt = mixadd3.prompt_at(seed=self.seed, index=index, split=self.split)
        return PromptRow(data_source=mixadd3.DATA_SOURCE, prompt=prompt, ground_truth=mixadd3.answer(prompt))

    def describe(self) -> dict[str, str | int]:
        """Name for the log at start."""
        return {"source": f"{MIXADD3}{self.split}"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProductsSource:
    """The products of the demo of two turns (sluice/tasks/products.py)."""

    split: str
    seed: int

    @property
    def size(self) -> None:
        """None, because the source is endless."""
        return

    def row(self, index: int) -> PromptRow:
        """Question `index` of the split, as a chat."""
        question = products.question_at(seed=self.seed, index=index, split=self.split)
        chat = (Message(role="user", content=question),)
        return PromptRow(data_source=products.DATA_SOURCE, prompt=chat, ground_truth=products.answer(question))

    def describe(self) -> dict[str, str | int]:
        """Name for the log at start."""
        return {"source": f"{PRODUCTS}{self.split}"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningGymSource:
    """One task of reasoning-gym. A row's ground truth is the whole entry as JSON, which the task's own grader needs.

    Row i is entry i of the task's data set if the entry belongs to the wanted split, else entry i of the next data set.
    """

    task: str
    seed: int
    held_out: bool

    @property
    def size(self) -> None:
        """None, because the source is endless."""
        return

    def row(self, index: int) -> PromptRow:
        """Row `index`. Raises DataError when the task makes no entry of this split."""
        block, offset = divmod(index, _BLOCK)
        for attempt in range(_TRIES):
            entry = _data_set(self.task, _derived_seed(self.seed, block, attempt))[offset]
            if _is_held_out(entry["question"]) == self.held_out:
                return _entry_row(self.task, entry)
        split = "held-out" if self.held_out else "training"
        raise DataError(f"{REASONING_GYM}{self.task}: made no {split} entry in {_TRIES} tries; its prompts are too few")

    def describe(self) -> dict[str, str | int]:
        """Name for the log at start."""
        return {"source": f"{REASONING_GYM}{self.task}", "split": "held_out" if self.held_out else "train"}


@functools.lru_cache(maxsize=64)
def _data_set(task: str, seed: int) -> Any:
    """A data set of the task. Raises DataError for a task that the library lacks or cannot make with its defaults."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise DataError(f"{REASONING_GYM}{task}: needs the package reasoning-gym; install sluice-rl[reasoning-gym]")
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(task, seed=seed, size=_BLOCK)
    except (ValueError, AssertionError) as error:
        raise DataError(f"{REASONING_GYM}{task}: {error}") from error


def _derived_seed(seed: int, block: int, attempt: int) -> int:
    """A seed of 31 bits, because some tasks seed numpy's old generator with seed + index. Equal seeds only repeat prompts."""
    return zlib.crc32(f"{seed}/{block}/{attempt}".encode()) >> 1


def _entry_row(task: str, entry: dict[str, Any]) -> PromptRow:
    try:
        ground_truth = json.dumps(entry, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"{REASONING_GYM}{task}: an entry is not representable as JSON: {error}") from error
    question = f"{entry['question']}\n\n{_ANSWER_FORMAT}"
    return PromptRow(
        data_source=f"reasoning_gym/{task}",
        prompt=(Message(role="user", content=question),),
        ground_truth=ground_truth,
    )


def _is_held_out(question: str) -> bool:
    digest = hashlib.blake2b(question.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _HELD_OUT_OF == 0
