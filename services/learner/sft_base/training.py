"""The supervised training behind build.py: two stages that make a base model which reinforcement learning can improve.

A character-level Qwen3 is trained from scratch, first on additions worked out digit by digit (addcot3), then on
demonstrations of mixed quality (mixadd3). Prompts of the `held_out` and `fresh` splits are never seen, not even by the
check of the finished base.

A stage is a number of steps at a constant rate, and its last weights are the result: noisy ones, whose accuracy jumps
by .2 within 50 steps. So the last stage goes on past its steps until the base is accurate enough: on one CPU it had .24
after 250 steps and .60 after 300. On one machine, the same seed gives the same bytes. Another CPU's rounding gives another
base: measured, a change of 1e-7 in one initial weight moved the greedy accuracy on held-out prompts from .70 to .58.

A prompt is its characters without a BOS: the tokenizer adds nothing, so training saw exactly `tokenizer(prompt)`. The loss
is on completion tokens alone, the end token included.

Letters: R rows, T tokens of the longest row, V vocabulary.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging

from services.learner.sft_base.stages import Stage
from sluice.tasks import mixadd3

_ID_OF = {token: index for index, token in enumerate(mixadd3.VOCABULARY)}
_PAD_ID, _BOS_ID, _EOS_ID = (_ID_OF[token] for token in (mixadd3.PAD, mixadd3.BOS, mixadd3.EOS))

_DEMONSTRATIONS: dict[str, Callable[[str, random.Random], str]] = {
    "addcot3": lambda prompt, _: mixadd3.addcot3_demonstration(prompt),
    "mixadd3": mixadd3.demonstration,
}

# Of both stages.
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
# Of the last stage, beyond its own. Measured on one CPU: 8 of the 14 checks after step 250 found .5 or more.
_CHECK_PROMPTS = 256
_LONGEST_COMPLETION_TOKENS = 72
_IGNORED = -100

_Row = tuple[str, str]  # prompt, demonstration


def train_base(
    *,
    seed: int,
    architecture: Mapping[str, Any],
    stages: Sequence[Stage],
    min_accuracy: float,
    report: Callable[[str], None],
) -> Qwen3ForCausalLM:
    """Trains a base from scratch. `report` is given a line now and then.

    Raises RuntimeError when the base never solves `min_accuracy` (in [0, 1]) of training prompts greedily.
    """
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)
    config = Qwen3Config(
        **architecture,
        tie_word_embeddings=True,
        pad_token_id=_PAD_ID,
        bos_token_id=_BOS_ID,
        eos_token_id=_EOS_ID,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    training: Iterator[float] = iter(())
    for stage in stages:
        training = _train_steps(model, stage, random.Random(f"{stage.name}/{seed}"))
        for step, loss in enumerate(islice(training, stage.steps), start=1):
            if step % _REPORT_EVERY_STEPS == 0 or step == stage.steps:
                report(f"{stage.name}: step {step} of {stage.steps}, loss {loss:.3f}")
    prompts = [mixadd3.prompt_at(seed=0, index=index, split="train") for index in range(_CHECK_PROMPTS)]
    accuracy = 0.0
    for more in range(0, _MOST_MORE_STEPS + 1, _CHECK_EVERY_STEPS):
        if more:
            deque(islice(training, _CHECK_EVERY_STEPS), maxlen=0)
        accuracy = greedy_accuracy(model, prompts)
        report(f"base: greedy accuracy {accuracy:.3f} on training prompts after {more} more steps")
        if accuracy >= min_accuracy:
            return model
    raise RuntimeError(f"base: greedy accuracy {accuracy:.3f} is still below {min_accuracy}; try another --seed")


def save_model(model: Qwen3ForCausalLM, folder: Path) -> None:
    """Writes config, safetensors, neutral generation config and tokenizer."""
    logging.disable_progress_bar()
    model.save_pretrained(folder)
    make_tokenizer(max_length=model.config.max_position_embeddings).save_pretrained(folder)


def make_tokenizer(*, max_length: int) -> PreTrainedTokenizerFast:
    """One token a character, nothing added, decoding without blanks between tokens. Unknown characters are an error."""
    tokenizer = Tokenizer(models.WordLevel(_ID_OF))  # type: ignore[arg-type]
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=mixadd3.PAD,
        bos_token=mixadd3.BOS,
        eos_token=mixadd3.EOS,
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )


def greedy_accuracy(model: Qwen3ForCausalLM, prompts: Sequence[str]) -> float:
    """Share of prompts whose greedy completion is right."""
    by_length = sorted(prompts, key=len)
    right = 0
    for _, group in groupby(by_length, key=len):  # one length at a time: no padding
        same_length = list(group)
        for prompt, token_ids in zip(same_length, _complete(model, same_length), strict=True):
            finished = token_ids[-1] == _EOS_ID
            text = "".join(mixadd3.VOCABULARY[token] for token in token_ids if token != _EOS_ID)
            right += mixadd3.verify(ground_truth=mixadd3.answer(prompt), completion=text, finished=finished)[0]
    return right / len(prompts)


def _train_steps(model: Qwen3ForCausalLM, stage: Stage, rng: random.Random) -> Iterator[float]:
    """Trains the model in place, one step an item, at a constant rate after the first few; yields each step's loss."""
    parameters = tuple(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=stage.lr, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / _LR_WARMUP_STEPS))
    while True:
        loss = _accumulate_gradients(model, _draw_rows(_DEMONSTRATIONS[stage.name], rng))
        torch.nn.utils.clip_grad_norm_(parameters, _GRAD_CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        yield loss


def _accumulate_gradients(model: Qwen3ForCausalLM, rows: list[_Row]) -> float:
    """Backward pass of the mean cross-entropy over all completion tokens; returns this loss in nats."""
    rows = sorted(rows, key=lambda row: len(row[0] + row[1]))
    tokens = sum(len(completion) + 1 for _, completion in rows)
    total = 0.0
    for start in range(0, len(rows), _CHUNK_ROWS):
        token_ids, targets = _tensors(rows[start : start + _CHUNK_ROWS])
        # Rows are padded on the right, where causal attention never looks: no mask is needed.
        logits = model(input_ids=token_ids, use_cache=False).logits  # [R, T, V]
        loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=_IGNORED, reduction="sum") / tokens
        loss.backward()
        total += loss.item()
    return total


def _draw_rows(demonstrate: Callable[[str, random.Random], str], rng: random.Random) -> list[_Row]:
    rows: list[_Row] = []
    while len(rows) < _BATCH_ROWS:
        prompt = mixadd3.prompt(rng)
        if mixadd3.split_of(prompt) == "train":
            rows.append((prompt, demonstrate(prompt, rng)))
    return rows


def _tensors(rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
    """[R, T] int64 token ids padded on the right, and [R, T] the next tokens, _IGNORED outside completions."""
    longest = max(len(prompt + completion) for prompt, completion in rows) + 1
    token_ids = torch.full((len(rows), longest), _PAD_ID)
    targets = torch.full((len(rows), longest), _IGNORED)
    for row, (prompt, completion) in enumerate(rows):
        sequence = torch.tensor([*(_ID_OF[character] for character in prompt + completion), _EOS_ID])
        token_ids[row, : len(sequence)] = sequence
        targets[row, len(prompt) - 1 : len(sequence) - 1] = sequence[len(prompt) :]
    return token_ids, targets


@torch.no_grad()
def _complete(model: Qwen3ForCausalLM, prompts: Sequence[str]) -> list[list[int]]:
    """Greedy completions of prompts of one length, end token included; finished rows leave the batch."""
    completions: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))
    token_ids = torch.tensor([[_ID_OF[character] for character in prompt] for prompt in prompts])
    cache: Any = DynamicCache(config=model.config)
    for _ in range(_LONGEST_COMPLETION_TOKENS):
        chosen = model(input_ids=token_ids, past_key_values=cache).logits[:, -1].argmax(-1)
        for row, token in zip(alive, chosen.tolist(), strict=True):
            completions[row].append(token)
        going_on = (chosen != _EOS_ID).nonzero().flatten()
        if len(going_on) == 0:
            break
        alive = [alive[row] for row in going_on.tolist()]
        cache.batch_select_indices(going_on)
        token_ids = chosen[going_on, None]
    return completions
