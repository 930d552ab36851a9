"""products: multiplying two numbers of four digits with a calculator, the task of `sluice demo-turns`.

A question is ``What is 4821*7693?``, in a chat with the tool ``calculate`` of the built-in environment ``calculator``. A good
episode has two turns: the policy asks the tool, reads the product, and writes ``Answer: 37087953``. So small a model cannot
multiply, so whoever guesses is wrong. Demonstrations for the base model are of mixed quality (most guess, some ask, and some of
those copy the product badly), so that reinforcement learning has both to find the tool and to copy with care.

Everything here is a pure function and needs the standard library alone: the coordinator takes questions from this module, and
the learner builds the base model from its demonstrations. The module names the tokens and the chat template, and does not
tokenise. The grader `exact` grades the last turn.
"""

import random
from dataclasses import dataclass
from typing import Final

from sluice.tasks.splits import SPLITS, split_of

DATA_SOURCE: Final = "products"

DIGITS: Final = 4
"""Of each number; a product has 7 or 8."""

PAD, START, END = "<pad>", "<|im_start|>", "<|im_end|>"

_SPECIALS = (PAD, START, END)
_CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
WORDS: Final = (
    *("<tool_call>", "</tool_call>", "system", "tools", "user", "assistant", "tool"),
    *("What is ", "Answer: ", '{"', '": "', '", "', '": {"', '"}}', "name", "calculate", "arguments", "expression"),
)
"""Tokens of several characters. A token of `_CHARACTERS` stands for any other text of a tool's answers."""

VOCABULARY: Final[tuple[str, ...]] = (*_SPECIALS, *WORDS, *_CHARACTERS)
"""The token of every id."""

CHAT_TEMPLATE: Final = """\
{%- if tools %}{{ '<|im_start|>tools\\n' }}
{%- for tool in tools %}{{ tool.function.name }}{% if not loop.last %}{{ ' ' }}{% endif %}{% endfor %}{{ '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}{% if message.content or not loop.first %}{{ '\\n' }}{% endif %}
{{- '<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
{%- set given = call.function.arguments %}{{ given if given is string else given | tojson }}{{ '}\\n</tool_call>' }}
{%- endfor %}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
"""In the style of Qwen, with the names of tools instead of their schemas: this model knows the one tool from its warm-up."""

# Shares of the demonstrations that ask the calculator, and of those that copy its answer rightly.
_ASK_SHARE = 0.3
_COPY_SHARE = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of an episode's text."""

    text: str
    by_policy: bool
    """Whether the policy wrote it, and it is learned."""


def question_at(*, seed: int, index: int, split: str) -> str:
    """Returns question ``index`` (0-based) of an endless sequence: a pure function of its arguments.

    Questions are drawn with replacement; a text never changes its split.

    Raises:
        ValueError: the index is negative or there is no such split.
    """
    if index < 0:
        raise ValueError(f"{DATA_SOURCE}: index must be >= 0, got {index}")
    if split not in SPLITS:
        raise ValueError(f"{DATA_SOURCE}: split must be one of {', '.join(SPLITS)}, got {split!r}")
    rng = random.Random(f"{DATA_SOURCE}/{split}/{seed}/{index}")
    while split_of(text := question(rng)) != split:
        pass
    return text


def question(rng: random.Random) -> str:
    """Draws a question from any split."""
    return f"What is {_number(rng)}*{_number(rng)}?"


def answer(question: str) -> str:
    """Returns the product that a question asks for, as digits.

    Raises:
        ValueError: the text is not a question of this task.
    """
    a, star, b = _expression(question).partition("*")
    if not (star and a.isdecimal() and b.isdecimal()):
        raise ValueError(f"{DATA_SOURCE}: a question looks like 'What is 4821*7693?', got {question!r}")
    return str(int(a) * int(b))


def opening(question: str) -> str:
    """The chat as the policy reads it before its first turn."""
    return f"{START}tools\ncalculate{END}\n{START}user\n{question}{END}\n{START}assistant\n"


def call(question: str) -> str:
    """The turn that asks the calculator."""
    arguments = f'{{"expression": "{_expression(question)}"}}'
    return f'<tool_call>\n{{"name": "calculate", "arguments": {arguments}}}\n</tool_call>'


def tool_answer(answer: str) -> str:
    """What the policy reads between the call and its last turn."""
    return f"\n{START}tool\n{answer}{END}\n{START}assistant\n"


def stated(product: str) -> str:
    """The last turn."""
    return f"Answer: {product}"


def good_episode(question: str) -> tuple[Part, ...]:
    """Asks, and copies the calculator's answer."""
    return _episode(question, copied=answer(question))


def demonstration(question: str, rng: random.Random) -> tuple[Part, ...]:
    """An episode of mixed quality: 70 % answer at once, 18 % ask and copy the answer, 12 % ask and spoil a digit.

    Episodes that answer at once are right, but nothing in them shows how.
    """
    product = answer(question)
    if rng.random() >= _ASK_SHARE:
        return (Part(text=opening(question), by_policy=False), Part(text=stated(product) + END, by_policy=True))
    return _episode(question, copied=product if rng.random() < _COPY_SHARE else _spoilt(product, rng))


def _episode(question: str, *, copied: str) -> tuple[Part, ...]:
    return (
        Part(text=opening(question), by_policy=False),
        Part(text=call(question) + END, by_policy=True),
        Part(text=tool_answer(answer(question)), by_policy=False),
        Part(text=stated(copied) + END, by_policy=True),
    )


def _spoilt(product: str, rng: random.Random) -> str:
    """The product with one digit replaced by another one."""
    place = int(rng.random() * len(product))
    other = (int(product[place]) + 1 + int(rng.random() * 9)) % 10
    return f"{product[:place]}{other}{product[place + 1 :]}"


def _expression(question: str) -> str:
    return question.removeprefix("What is ").removesuffix("?")


def _number(rng: random.Random) -> int:
    """Uses `Random.random` alone, the one generator that Python promises not to change."""
    low = 10 ** (DIGITS - 1)
    return low + int(rng.random() * 9 * low)
