"""The supervised training behind build.py: stages that make a base model which reinforcement learning can improve.

A character-level Qwen3 is trained from scratch on the demonstrations of a course (course.py). Prompts of the `held_out` and
`fresh` splits are never seen, not even by the exam.

A stage is a number of steps at a constant rate, and its last weights are the result: noisy ones, whose accuracy jumps
by .2 within 50 steps. So the examined stage goes on past its steps until the base is accurate enough: on one CPU the base of
mixadd3 had .24 after 250 steps and .60 after 300. On one machine, the same seed gives the same bytes. Another CPU's rounding
gives another base: measured, a change of 1e-7 in one initial weight moved the greedy accuracy on held-out prompts from .70 to
.58.

The loss is on what the course says is learned, end tokens included.

Letters: R rows, T tokens of the longest row, V vocabulary.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from services.learner.sft_base.course import Course, Question, Row, Stage

# Of every stage.
_BATCH_ROWS = 32
_LR_WARMUP_STEPS = 20
_BETAS = (0.9, 0.98)
_WEIGHT_DECAY = 0.01
_GRAD_CLIP = 1.0
# Rows are sorted by length and padded in chunks: measured 1.5 times faster on the mixed demonstrations.
_CHUNK_ROWS = 8
_REPORT_EVERY_STEPS = 50
_CHECK_EVERY_STEPS = 25
_MOST_MORE_STEPS = 250
# Of the examined stage, beyond its own. Measured on one CPU: 8 of the 14 checks of mixadd3 after step 250 found .5 or more.
_CHECK_PROMPTS = 256
_IGNORED = -100

_Tokens = tuple[list[int], list[bool]]


def train_base(course: Course, *, seed: int, report: Callable[[str], None]) -> Qwen3ForCausalLM:
    """Trains a base from scratch. `report` is given a line now and then.

    Raises RuntimeError when the base never solves the course's `min_accuracy` of its exam greedily.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    model = _new_model(course)
    for stage in course.stages:
        training = _train_steps(model, course, stage, random.Random(f"{stage.name}/{seed}"))
        for step, loss in enumerate(islice(training, stage.steps), start=1):
            if step % _REPORT_EVERY_STEPS == 0 or step == stage.steps:
                report(f"{stage.name}: step {step} of {stage.steps}, loss {loss:.3f}")
        if stage.name == course.examined:
            _train_until_it_passes(model, course, training, report)
    return model


def _new_model(course: Course) -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=len(course.vocabulary),
        **course.architecture,
        tie_word_embeddings=True,
        pad_token_id=course.ids[course.pad],
        bos_token_id=None if course.bos is None else course.ids[course.bos],
        eos_token_id=course.ids[course.eos],
        dtype="float32",
    )
    return Qwen3ForCausalLM(config)


def _train_until_it_passes(
    model: Qwen3ForCausalLM, course: Course, training: Iterator[float], report: Callable[[str], None]
) -> None:
    exam, accuracy = course.exam(_CHECK_PROMPTS), 0.0
    for more in range(0, _MOST_MORE_STEPS + 1, _CHECK_EVERY_STEPS):
        if more:
            deque(islice(training, _CHECK_EVERY_STEPS), maxlen=0)
        accuracy = greedy_accuracy(model, course, exam)
        report(f"base: greedy accuracy {accuracy:.3f} on training prompts after {more} more steps")
        if accuracy >= course.min_accuracy:
            return
    raise RuntimeError(f"base: greedy accuracy {accuracy:.3f} is still below {course.min_accuracy}; try another --seed")


def save_model(model: Qwen3ForCausalLM, course: Course, folder: Path) -> None:
    """Writes config, safetensors, neutral generation config and tokenizer."""
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    make_tokenizer(course).save_pretrained(folder)


def make_tokenizer(course: Course) -> PreTrainedTokenizerFast:
    """The tokens of the course, nothing added, decoding without blanks between them. Unknown characters are an error."""
    tokenizer = Tokenizer(models.WordLevel(course.ids))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(course.pattern), behavior="isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    named: dict[str, Any] = {"pad_token": course.pad, "bos_token": course.bos, "eos_token": course.eos}
    if course.specials:
        named["additional_special_tokens"] = list(course.specials)
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **{name: token for name, token in named.items() if token is not None},
        model_max_length=course.architecture["max_position_embeddings"],
        clean_up_tokenization_spaces=False,
    )
    if course.chat_template is not None:
        made.chat_template = course.chat_template
    return made


def greedy_accuracy(model: Qwen3ForCausalLM, course: Course, questions: Sequence[Question]) -> float:
    """Share of questions whose greedy completion is right."""
    encoded = sorted(
        ((course.encode(question.prompt), question) for question in questions), key=lambda one: len(one[0])
    )
    right = 0
    for _, group in groupby(encoded, key=lambda one: len(one[0])):  # one length at a time: no padding
        same_length = list(group)
        completions = _complete(model, course, [ids for ids, _ in same_length])
        for (_, question), token_ids in zip(same_length, completions, strict=True):
            finished = token_ids[-1] == course.ids[course.eos]
            text = "".join(course.vocabulary[token] for token in (token_ids[:-1] if finished else token_ids))
            right += question.right(text, finished)
    return right / len(questions)


def _train_steps(model: Qwen3ForCausalLM, course: Course, stage: Stage, rng: random.Random) -> Iterator[float]:
    """Trains the model in place, one step an item, at a constant rate after the first few; yields each step's loss."""
    parameters = tuple(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _LR_WARMUP_STEPS))
    while True:
        rows = [_encoded(course, course.demonstrate(stage.name, rng)) for _ in range(_BATCH_ROWS)]
        loss = _accumulate_gradients(model, rows, padding=course.ids[course.pad])
        torch.nn.utils.clip_grad_norm_(parameters, _GRAD_CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss


def _encoded(course: Course, row: Row) -> _Tokens:
    """The ids of a row, and whether each is learned."""
    pieces = [(token, learned) for text, learned in row for token in course.encode(text)]
    return [token for token, _ in pieces], [learned for _, learned in pieces]


def _accumulate_gradients(model: Qwen3ForCausalLM, rows: list[_Tokens], *, padding: int) -> float:
    """Backward pass of the mean cross-entropy over all learned tokens; returns this loss in nats."""
    rows = sorted(rows, key=lambda row: len(row[0]))
    tokens = sum(sum(learned) for _, learned in rows)
    total = 0.0
    for start in range(0, len(rows), _CHUNK_ROWS):
        token_ids, targets = _tensors(rows[start : start + _CHUNK_ROWS], padding=padding)
        # Rows are padded on the right, where causal attention never looks: no mask is needed.
        logits = model(input_ids=token_ids, use_cache=False).logits  # [R, T, V]
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    return total


def _tensors(rows: Sequence[_Tokens], *, padding: int) -> tuple[Tensor, Tensor]:
    """[R, T] int64 token ids padded on the right, and [R, T] the next tokens, _IGNORED where they are not learned."""
    longest = max(len(ids) for ids, _ in rows)
    token_ids = torch.full((len(rows), longest), padding)
    targets = torch.full((len(rows), longest), _IGNORED)
    for row, (ids, learned) in enumerate(rows):
        token_ids[row, : len(ids)] = torch.tensor(ids)
        wanted = [token if is_learned else _IGNORED for token, is_learned in zip(ids, learned, strict=True)]
        targets[row, : len(ids) - 1] = torch.tensor(wanted[1:])
    return token_ids, targets


@torch.no_grad()
def _complete(model: Qwen3ForCausalLM, course: Course, prompts: Sequence[list[int]]) -> list[list[int]]:
    """Greedy completions of prompts of one length, end token included; finished rows leave the batch."""
    completions: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    token_ids = torch.tensor(prompts)
    cache: Any = DynamicCache(config=model.config)
    for _ in range(course.longest_completion_tokens):
        chosen = model(input_ids=token_ids, past_key_values=cache).logits[:, -1].argmax(-1)
        for row, token in zip(alive, chosen.tolist(), strict=True):
            completions[row].append(token)
        going_on = (chosen != course.ids[course.eos]).nonzero().flatten()
        if len(going_on) == 0:
            break
        alive = [alive[row] for row in going_on.tolist()]
        cache.batch_select_indices(going_on)
        token_ids = chosen[going_on, None]
    return completions
