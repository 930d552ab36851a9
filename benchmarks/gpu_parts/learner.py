"""The learner on a random model of Qwen3-1.7B's shape: rates, shares of the measured product, memory.

One update a step.
"""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.gpu_parts.context import Context, Figure
from services.learner.batches.batch import Batch, TrainGroup, TrainSequence
from services.learner.distributed.ranks import Ranks, join_ranks
from services.learner.policy import matrix_products
from services.learner.policy.forward import Policy
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.training.train_step import Trainer
from sluice.config.schema import Config

STEPS = 2
"""Measured steps of a variant, after one that warms up."""

BUDGET = 32_768


def variants(context: Context) -> Iterator[Figure]:
    """Tokens/s, MFU and peak memory of each way to compute the same step."""
    ranks = join_ranks()
    ways: tuple[tuple[str, Mapping[str, Any], bool], ...] = (
        ("checkpointing", {"gradient_checkpointing": True}, True),
        ("checkpointing, chunk 1024", {"gradient_checkpointing": True, "logprob_chunk_tokens": 1024}, True),
        ("checkpointing, products rounded first", {"gradient_checkpointing": True}, False),
        ("no checkpointing", {}, True),
    )
    batch = _batch(context, prompt=512, answer=1536, n=16)
    for name, settings, fused in ways[::3] if context.small else ways:
        with mock.patch.object(matrix_products, "fused_product", matrix_products.fused_product if fused else _never):
            yield from _measured(context, ranks, batch, name, {"share_prompts": "never", **settings})


def shared(context: Context) -> Iterator[Figure]:
    """Tokens/s with a group's prompt computed once, over computing it for each sample."""
    ranks = join_ranks()
    for prompt, answer, n in ((512, 512, 16), (200, 8000, 16))[: 1 if context.small else 2]:
        batch = _batch(context, prompt=prompt, answer=answer, n=n)
        rates = []
        for kind in ("never", "auto"):
            for figure in _measured(
                context,
                ranks,
                batch,
                f"{prompt}/{answer}/{n} {kind}",
                {"share_prompts": kind, "gradient_checkpointing": True},
            ):
                rates += [figure.value] if figure.unit == "tokens/s" else []
                yield figure
        if len(rates) == 2:
            yield Figure(what=f"{prompt}/{answer}/{n}: shared / not", value=rates[1] / rates[0], unit="")


def policy_of(context: Context, ranks: Ranks, config: Config) -> Policy:
    """The model on the device, as the learner loads it."""
    return load_policy(config, ranks)


def configuration(
    context: Context, *, learner: Mapping[str, Any] | None = None, **sections: Mapping[str, Any]
) -> Config:
    """A recipe for the part's model."""
    return Config.model_validate(
        {
            "model": {"path": str(written_model(context)), "dtype": context.dtype},
            "data": {"train_files": ["none.jsonl"], "train_batch_size": 1, "max_response_length": 8192},
            "rollout": {"n": 16},
            "learner": {"max_tokens_per_micro_batch": BUDGET, **(learner or {})},
            **sections,
        }
    )


def write_model(context: Context) -> Iterator[Figure]:
    """Writes the random model's folder. A part of its own: it is drawn on the device, which others fork before they touch."""
    with torch.device(context.device):
        model = AutoModelForCausalLM.from_config(_shape(context), dtype=getattr(torch, context.dtype))
    model.save_pretrained(written_model(context))
    yield Figure(what="parameters", value=float(sum(p.numel() for p in model.parameters())), unit="")


def written_model(context: Context) -> Path:
    """The folder of the random model."""
    return context.folder / "model"


def _shape(context: Context) -> Qwen3Config:
    large = {"vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
    small = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    if not context.small:
        heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    sizes = (small if context.small else large) | heads
    return Qwen3Config(
        **sizes, max_position_embeddings=16_384, tie_word_embeddings=True, eos_token_id=0, pad_token_id=0
    )


def _measured(context: Context, ranks: Ranks, batch: Batch, name: str, settings: Mapping[str, Any]) -> Iterator[Figure]:
    """Loads, trains STEPS + 1 times, and forgets. Running out of memory is a figure of its own."""
    config = configuration(context, learner={**settings, "peak_flops": context.ceilings.get("flops", 0.0)})
    started = time.perf_counter()
    policy = policy_of(context, ranks, config)
    trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)
    print(f"{name}: loaded in {time.perf_counter() - started:.1f} s")
    try:
        for _ in range(STEPS + 1):
            trainer.step = 0
            metrics = trainer.train(batch)
    except Exception as error:
        if not isinstance(error.__cause__, torch.OutOfMemoryError):
            raise
        yield Figure(what=f"{name}: out of memory", value=0.0, unit="")
        return
    finally:
        del policy, trainer
        if context.device == "cuda":
            torch.cuda.empty_cache()
    mfu = metrics.get("learner/mfu")
    yield Figure(
        what=f"{name}: learner", value=metrics["learner/tokens_per_s"], unit="tokens/s",
        ratio=mfu, ratio_of="" if mfu is None else "flops (MFU)",
    )  # fmt: skip
    yield Figure(what=f"{name}: peak memory", value=metrics.get("learner/peak_memory_bytes", 0.0) / 2**30, unit="GiB")


def _batch(context: Context, *, prompt: int, answer: int, n: int) -> Batch:
    """One group; on a CPU of a few tokens."""
    if context.small:
        prompt, answer, n = min(prompt, 12), min(answer, 9), 4
    rng, vocabulary = np.random.default_rng(0), _shape(context).vocab_size
    ids = rng.integers(0, vocabulary, prompt)
    sequences = tuple(
        TrainSequence(
            token_ids=np.concatenate([ids, rng.integers(0, vocabulary, answer)]).astype(np.int32),
            prompt_tokens=prompt,
            rollout_logprobs=np.full(answer, -np.log(vocabulary), np.float32),
            versions=np.zeros(answer, np.int32),
            reward=float(index % 2),
            truncated=False,
        )
        for index in range(n)
    )
    return Batch(step=0, digest="one-gpu", groups=(TrainGroup(group_id="g", sequences=sequences),))


def _never(device: torch.device, dtype: torch.dtype) -> None:
    """matrix_products.fused_product where nothing is fused."""
