"""What a base model is taught: tokens, sizes, stages, demonstrations and an exam. Imports no torch, which build.py does not
need for an up-to-date base."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One supervised stage."""

    name: str
    lr: float
    steps: int


Row = tuple[tuple[str, bool], ...]
"""The pieces of one demonstration: a text, and whether it is learned. The end token is part of the text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """One question of an exam."""

    prompt: str
    right: Callable[[str, bool], bool]
    """Judges a completion by its text without the end token, and whether the end token was there."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """One base model."""

    task: str
    """Module under sluice/tasks."""
    vocabulary: Sequence[str]
    """The token of every id."""
    pad: str
    bos: str | None
    eos: str
    words: Sequence[str] = ()
    """Tokens of several characters that are found in ordinary text; special tokens are found too."""
    specials: Sequence[str] = ()
    """Special tokens beside pad, bos and eos."""
    chat_template: str | None = None
    architecture: Mapping[str, Any]
    """Of a Qwen3 with tied embeddings, `vocab_size` apart."""
    stages: Sequence[Stage]
    demonstrate: Callable[[str, random.Random], Row]
    """Stage name -> the next demonstration, about a question of the split `train`."""
    examined: str
    """The stage that goes on until the exam is passed."""
    exam: Callable[[int], Sequence[Question]]
    """Number of prompts -> questions of the split `train`."""
    min_accuracy: float
    """Share of the exam that a base must solve greedily."""
    longest_completion_tokens: int
    examples: Callable[[int], Sequence[str]]
    """Seed -> a few demonstrations, by which a change of the task is noticed."""

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token -> id."""
        return {token: index for index, token in enumerate(self.vocabulary)}

    @cached_property
    def _token(self) -> re.Pattern[str]:
        special = [token for token in (self.pad, self.bos, self.eos, *self.specials) if token]
        return re.compile(f"{'|'.join(map(re.escape, special))}|{self.pattern}")

    @property
    def pattern(self) -> str:
        """A regular expression of one token of ordinary text: the longest word, else a character."""
        words = sorted(self.words, key=len, reverse=True)
        return "|".join([*map(re.escape, words), r"[\s\S]"])

    def encode(self, text: str) -> list[int]:
        """The ids of a text. Raises KeyError for a character without a token."""
        return [self.ids[token] for token in self._token.findall(text)]
