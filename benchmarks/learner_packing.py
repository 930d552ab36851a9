"""Training tokens per second, packed against padded batches, on long-tailed lengths; same model, head, loss and optimizer.

Padded is what a trainer without packing does: sequences as they come, as many a micro-batch as fit the same token budget
by the longest of them, padded to it, the stock model's attention with a mask. Sorted puts those of like length together
first, which a trainer may do within one update. Real completion tokens are counted, padding is not.

Lengths are log-normal (median a quarter of the limit, sigma 0.9) and cut at the limit, the shape that reasoning runs
report: most answers short, some at the limit.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.report import Row
from services.learner.batches.batch import Batch, TrainGroup, TrainSequence
from services.learner.distributed.ranks import join_ranks
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.training.train_step import Trainer
from sluice.config.schema import Config
from sluice.dapo.loss import dapo_token_loss

LIMIT, PROMPT, GROUPS, SAMPLES = 512, 32, 8, 8
BUDGET = 4096
ROUNDS = 3
TARGET = 1.8
VOCABULARY = 2048


def run() -> list[Row]:
    """One update over 64 sequences, in turns; medians."""
    torch.set_num_threads(1)
    ranks = join_ranks()
    batch = _batch()
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder))
        config = Config.model_validate(
            {
                "model": {"path": str(path), "dtype": "float32"},
                "data": {"train_files": ["none.jsonl"], "train_batch_size": GROUPS, "max_response_length": LIMIT},
                "rollout": {"n": SAMPLES},
                "learner": {"max_tokens_per_micro_batch": BUDGET},
            }
        )
        policy = load_policy(config, ranks)
        trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)
        stock = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        optimizer = torch.optim.AdamW(stock.parameters(), lr=1e-6, fused=True)
    in_order = batch.sequences
    by_length = sorted(in_order, key=lambda s: -s.input_tokens)

    def packed() -> None:
        trainer.step = 0
        trainer.train(batch)

    methods: dict[str, Callable[[], None]] = {
        "packed": packed,
        "padded": lambda: _padded_update(stock, optimizer, in_order),
        "padded, sorted by length": lambda: _padded_update(stock, optimizer, by_length),
    }
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for index in range(ROUNDS + 1):
        for name, method in methods.items():
            started = time.perf_counter()
            method()
            if index:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    ranks.leave()
    tokens = sum(s.completion_tokens for s in in_order)
    rates = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    lengths = [s.completion_tokens for s in in_order]
    rows = [
        Row(what=f"{name}, completions of {min(lengths)} to {max(lengths)} tokens, mean {np.mean(lengths):.0f}",
            value=rate, unit="tokens/s", target="", met=True)
        for name, rate in rates.items()
    ]  # fmt: skip
    ratio = rates["packed"] / rates["padded"]
    sorted_ratio = rates["packed"] / rates["padded, sorted by length"]
    return [
        *rows,
        Row(what="packed / padded", value=ratio, unit="", target=f">= {TARGET}", met=ratio >= TARGET),
        Row(what="packed / padded, sorted by length", value=sorted_ratio, unit="", target="", met=True),
    ]


def write_model(folder: Path, *, positions: int = 2048) -> Path:
    """A Qwen3 of about 4 million parameters: large enough that matrix products, not dispatch, take the time."""
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4,
        head_dim=64, intermediate_size=768, max_position_embeddings=positions, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _batch() -> Batch:
    rng = np.random.default_rng(0)
    groups = []
    for index in range(GROUPS):
        prompt = rng.integers(0, VOCABULARY, PROMPT)
        lengths = np.clip(rng.lognormal(np.log(LIMIT / 4), 0.9, SAMPLES).astype(int), 4, LIMIT)
        groups.append(TrainGroup(group_id=f"g{index}", sequences=tuple(sequence(rng, prompt, n) for n in lengths)))
    return Batch(step=0, digest="benchmark", groups=tuple(groups))


def sequence(rng: np.random.Generator, prompt: np.ndarray, length: int) -> TrainSequence:
    """A random completion of a prompt."""
    return TrainSequence(
        token_ids=np.concatenate([prompt, rng.integers(0, VOCABULARY, length)]).astype(np.int32),
        prompt_tokens=len(prompt),
        rollout_logprobs=np.full(length, -np.log(VOCABULARY), np.float32),
        versions=np.zeros(length, np.int32),
        reward=float(rng.random() < 0.5),
        truncated=bool(length == LIMIT),
    )


def _padded_update(model: torch.nn.Module, optimizer: torch.optim.Optimizer, order: Sequence[TrainSequence]) -> None:
    total = sum(s.completion_tokens for s in order)
    optimizer.zero_grad()
    for rows in _by_budget(order):
        _padded_loss(model, rows, total).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def _by_budget(order: Sequence[TrainSequence]) -> list[list[TrainSequence]]:
    """Runs of sequences whose padded rectangle fits the budget."""
    batches: list[list[TrainSequence]] = [[]]
    for sequence in order:
        grown = [*batches[-1], sequence]
        if batches[-1] and max(s.input_tokens for s in grown) * len(grown) > BUDGET:
            batches.append([sequence])
        else:
            batches[-1] = grown
    return batches


def _padded_loss(model: torch.nn.Module, rows: Sequence[TrainSequence], total: int) -> torch.Tensor:
    """DAPO's loss over a right-padded rectangle, masked; all logits of the completions' positions exist."""
    ids = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(s.token_ids).long() for s in rows], batch_first=True)
    sizes = torch.tensor([len(s.token_ids) for s in rows])
    mask = (torch.arange(ids.shape[1])[None] < sizes[:, None]).long()
    logits = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=False).logits[:, PROMPT - 1 :]
    logprobs = torch.log_softmax(logits, -1)
    with torch.no_grad():
        torch.special.entr(logprobs.exp()).sum(-1)
    chosen = logprobs.gather(-1, ids[:, PROMPT:, None])[..., 0]
    token = dapo_token_loss(
        learner_logprobs=chosen,
        proximal_logprobs=torch.full_like(chosen, -float(np.log(VOCABULARY))),
        advantages=torch.tensor([s.reward - 0.5 for s in rows])[:, None].expand_as(chosen),
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        clip_ratio_c=10.0,
    )
    return (token.loss * mask[:, PROMPT:]).sum() / total
