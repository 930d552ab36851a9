"""mixadd3: adding two numbers of one to three digits, the task of the CPU demo.

A prompt is ``67+58=``. A good completion works from the right digit by digit, ``x+y+carry=vv`` joined by ``;``, then
states the sum after ``#``: ``7+8+0=15;6+5+1=12#125``. Demonstrations for the base model are of mixed quality (some
guess, some work, some ramble), so that reinforcement learning has both a style and a skill to improve.

Everything here is a pure function and needs the standard library alone: the coordinator takes prompts from this module,
the reward service verifies with it, and the learner builds the demo's base model from its demonstrations. This module
names the characters and does not tokenise.

Prompts fall into the three splits of splits.py.
"""

import random
from typing import Final

from sluice.tasks.splits import SPLITS, split_of

DATA_SOURCE: Final = "mixadd3"

MAX_DIGITS: Final = 3

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"

_SPECIALS = (PAD, BOS, EOS)
_CHARACTERS = "0123456789" + "+-*/=() \n?:.,;#<>_" + "abcdefghijklmnopqrstuvwxyz"
_UNUSED = tuple(f"<unused{i}>" for i in range(64 - len(_SPECIALS) - len(_CHARACTERS)))

VOCABULARY: Final[tuple[str, ...]] = (*_SPECIALS, *_CHARACTERS, *_UNUSED)
"""The token of every id, 64 in all: a token a character, then unused tokens."""

# Shares of demonstrations that only guess and that work the sum out once; the rest rambles.
_GUESS_SHARE = 0.25
_WORK_SHARE = 0.45
# Rambling repeats the work twice, then once more with this probability each time ...
_FURTHER_PASS_PROBABILITY = 0.4
# ... up to this many passes, so that prompt and completion fit 128 positions (8 + 4 * 26 + 3 + 5 + 1 = 121 tokens).
_MAX_PASSES = 4


def prompt(rng: random.Random) -> str:
    """Draws ``a+b=`` from any split; the number of digits is uniform in 1..3, then the number among all with that many."""
    return f"{_number(rng)}+{_number(rng)}="


def prompt_at(*, seed: int, index: int, split: str) -> str:
    """Returns prompt ``index`` (0-based) of an endless sequence: a pure function of its arguments.

    Prompts are drawn with replacement, so a text may come again at another index; a text never changes its split.

    Raises:
        ValueError: the index is negative or there is no such split.
    """
    if index < 0:
        raise ValueError(f"mixadd3: index must be >= 0, got {index}")
    if split not in SPLITS:
        raise ValueError(f"mixadd3: split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = random.Random(f"{DATA_SOURCE}/{split}/{seed}/{index}")
    while split_of(text := prompt(rng)) != split:
        pass
    return text


def answer(prompt: str) -> str:
    """Returns the sum that ``a+b=`` asks for, as digits.

    Raises:
        ValueError: the text is not a prompt of this task.
    """
    a, b = _operands(prompt)
    return str(a + b)


def verify(*, ground_truth: str, completion: str, finished: bool) -> tuple[bool, str | None]:
    """Judges a completion by the text after its last ``#``.

    Args:
        ground_truth: the sum, as `answer` gives it.
        completion: decoded text without special tokens.
        finished: whether the end token was produced; a truncated completion is never right.

    Returns:
        Whether the completion is right, and the answer found (None where there is no ``#``).
    """
    _, mark, found = completion.rpartition("#")
    if not mark:
        return False, None
    return finished and found == ground_truth, found


def demonstration(prompt: str, rng: random.Random) -> str:
    """Returns a right completion of mixed quality: 25 % bare guess, 45 % worked once, 30 % worked repeatedly."""
    style = rng.random()
    if style < _GUESS_SHARE:
        return f"#{answer(prompt)}"
    if style < _GUESS_SHARE + _WORK_SHARE:
        return addcot3_demonstration(prompt)
    passes = 2
    while passes < _MAX_PASSES and rng.random() < _FURTHER_PASS_PROBABILITY:
        passes += 1
    return ";".join([_work(prompt)] * passes) + f"#{answer(prompt)}"


def addcot3_demonstration(prompt: str) -> str:
    """Returns the completion that works the sum out once: ``67+58=`` gives ``7+8+0=15;6+5+1=12#125``."""
    return f"{_work(prompt)}#{answer(prompt)}"


def _work(prompt: str) -> str:
    """One term a digit from the right, each with its carry and a two-digit value."""
    a, b = _operands(prompt)
    terms, carry = [], 0
    for place in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**place % 10, b // 10**place % 10
        terms.append(f"{x}+{y}+{carry}={x + y + carry:02d}")
        carry = (x + y + carry) // 10
    return ";".join(terms)


def _operands(prompt: str) -> tuple[int, int]:
    left, plus, right = prompt.removesuffix("=").partition("+")
    if not (prompt.endswith("=") and plus and left.isdecimal() and right.isdecimal()):
        raise ValueError(f"mixadd3: a prompt looks like '67+58=', got {prompt!r}")
    return int(left), int(right)


def _number(rng: random.Random) -> int:
    """Uses `Random.random` alone, the one generator that Python promises not to change."""
    digits = 1 + int(rng.random() * MAX_DIGITS)
    low = 10 ** (digits - 1) if digits > 1 else 0
    return low + int(rng.random() * (10**digits - low))
