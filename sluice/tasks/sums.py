"""sums: adding two numbers of one or two digits, asked in plain words; the task of `sluice demo-llm`.

A prompt is a chat: a word to the model, one sum as an example, and the question ``What is 27 + 45?``. A good completion
is ``27 + 45 = 72`` or the number alone. Rows have verl's columns: the files of these rows are the files that a user writes
for a task of their own.

The example is part of the prompt because SmolLM2-135M-Instruct can add, but not when told to answer with a number. Measured
on 64 to 96 sums, 24 to 32 tokens, greedy / temperature 1: ``What is 27+45? Answer with the number only.`` .12 / .04, with
this example .39 / .28. The blanks matter as well: completing ``27 + 45 =`` .42 / .26, ``27+45=`` .12 / .10.

Every function here is pure and needs the standard library alone. The grader `numeric` grades the completions.

Rows fall into two disjoint splits by a fixed hash of the two numbers in order, so that 45+27 is never trained where
27+45 is held out.
"""

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any, Final, Literal

Split = Literal["train", "held_out"]

DATA_SOURCE: Final = "sums"

ROWS: Final[Mapping[Split, int]] = {"train": 1024, "held_out": 128}
"""Rows of each split, out of 10,000 sums. A run of 20 steps takes some 400 of the training rows."""

_EXAMPLE = (14, 38)
"""The two numbers of the example, which belong to no split."""


def rows(split: Split) -> list[dict[str, Any]]:
    """All rows of a split, none twice: the same rows in the same order at every call."""
    rng = random.Random(f"{DATA_SOURCE}/{split}")
    pairs: dict[tuple[int, int], None] = {}
    while len(pairs) < ROWS[split]:
        pair = _number(rng), _number(rng)
        if split_of(*pair) == split and pair != _EXAMPLE:
            pairs[pair] = None
    return [_row(a, b, split=split, index=index) for index, (a, b) in enumerate(pairs)]


def json_lines(split: Split) -> str:
    """The text of a JSON Lines file of a split's rows."""
    return "".join(json.dumps(row) + "\n" for row in rows(split))


def split_of(a: int, b: int) -> Split:
    """The split of a+b and of b+a: a hash of 0 mod 8 is held out."""
    digest = hashlib.blake2b(f"{min(a, b)}+{max(a, b)}".encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "little") % 8 == 0 else "train"


def _chat(a: int, b: int) -> list[dict[str, str]]:
    c, d = _EXAMPLE
    return [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": f"What is {c} + {d}?"},
        {"role": "assistant", "content": f"{c} + {d} = {c + d}"},
        {"role": "user", "content": f"What is {a} + {b}?"},
    ]


def _row(a: int, b: int, *, split: Split, index: int) -> dict[str, Any]:
    return {
        "data_source": DATA_SOURCE,
        "prompt": _chat(a, b),
        "reward_model": {"style": "rule", "ground_truth": str(a + b)},
        "extra_info": {"split": split, "index": index},
    }


def _number(rng: random.Random) -> int:
    """A number of one digit or of two digits, equally likely. Uses `Random.random` alone, whose sequence Python promises to
    keep."""
    return int(rng.random() * 10) if rng.random() < 0.5 else 10 + int(rng.random() * 90)
