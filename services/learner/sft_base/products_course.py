"""The base model of `sluice demo-turns`: first asks the calculator always and copies its answer, then mostly guesses.

The first stage goes on until the model asks for the right product and copies the answer; the second stage spoils the
model with demonstrations of mixed quality (sluice/tasks/products.py).
"""

import random
from collections.abc import Sequence
from functools import partial
from typing import Final

from services.learner.sft_base.course import Course, Question, Row, Stage
from sluice.tasks import products
from sluice.tasks.splits import split_of


def _demonstrate(stage: str, rng: random.Random) -> Row:
    while split_of(question := products.question(rng)) != "train":
        pass
    parts = products.good_episode(question) if stage == "ask" else products.demonstration(question, rng)
    return tuple((part.text, part.by_policy) for part in parts)


def _exam(prompts: int) -> list[Question]:
    """Half of the questions ask for the call, half for the last turn."""
    asked = [products.question_at(seed=0, index=index, split="train") for index in range(prompts)]
    return [_first_turn(one) if index % 2 else _last_turn(one) for index, one in enumerate(asked)]


def _first_turn(question: str) -> Question:
    return Question(prompt=products.opening(question), right=partial(_is, products.call(question)))


def _last_turn(question: str) -> Question:
    opening, call, told, _ = products.good_episode(question)
    return Question(
        prompt=opening.text + call.text + told.text, right=partial(_is, products.stated(products.answer(question)))
    )


def _is(wanted: str, completion: str, finished: bool) -> bool:
    return finished and completion == wanted


def _examples(seed: int) -> Sequence[str]:
    rng = random.Random(seed)
    asked = [products.question_at(seed=seed, index=index, split="train") for index in range(64)]
    return ["".join(part.text for part in products.demonstration(question, rng)) for question in asked]


COURSE: Final = Course(
    task="products",
    vocabulary=products.VOCABULARY,
    pad=products.PAD,
    bos=None,
    eos=products.END,
    words=products.WORDS,
    specials=(products.START,),
    chat_template=products.CHAT_TEMPLATE,
    architecture={
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "max_position_embeddings": 256,
    },
    stages=(Stage(name="ask", lr=4e-3, steps=150), Stage(name="mixed", lr=1e-3, steps=100)),
    demonstrate=_demonstrate,
    examined="ask",
    exam=_exam,
    min_accuracy=0.9,
    longest_completion_tokens=40,
    examples=_examples,
)
