"""Peak memory of a rank that trains one long sequence, alone and with the other ranks of a context group.

A random Qwen3 of 26 million parameters trains one sequence in float32, in processes of its own: one rank, a context group of
two, and one of four. A short step makes AdamW's moments; then the long one is measured. What counts is the peak resident set
during the long step (`learner/peak_memory_bytes`, the rank with the highest), less what a rank held when everything was
imported and the ranks had met: weights, moments, gradients and activations, without gradient checkpointing. Loss and gradient
norm have to agree. Time is no part of this: the ranks share the cores of one machine.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.report import Row
from services.learner.batches.batch import Batch, TrainGroup, TrainSequence
from services.learner.distributed.ending import end_process
from services.learner.distributed.ranks import join_ranks
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.training.train_step import Trainer
from sluice.config.schema import Config
from sluice.sizing.config_json import read_shape
from sluice.sizing.learner import Work, rank_memory

RANKS = (1, 2, 4)
TARGETS = {2: 0.55, 4: 0.3}
"""Largest share of one rank's memory; that of four is chosen: a quarter and a little."""

TOKENS, PROMPT = 8192, 512
VOCABULARY = 2048
ALIKE = 1e-4
"""Relative difference of loss and gradient norm; sums over 8,000 tokens in float32."""

APART = 0.15
"""Largest relative difference of what `sluice config check` counts, as in benchmarks/sizing.py."""

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
"""glibc raises both by itself up to 32 MiB when large blocks are freed; then the heap keeps what tensors gave back."""


def run() -> list[Row]:
    """Every number of ranks once: a peak has no noise worth a second."""
    with tempfile.TemporaryDirectory() as folder:
        model = _write_model(Path(folder) / "model")
        found = {ranks: _measure(model, Path(folder) / f"{ranks}.json", ranks) for ranks in RANKS}
        predicted = {ranks: _predicted_bytes(model, ranks) for ranks in RANKS}
    rows = []
    for ranks, figures in found.items():
        for name in ("loss", "norm"):
            assert abs(figures[name] / found[1][name] - 1) < ALIKE, f"{ranks} ranks have another {name}"
        what = f"one sequence of {TOKENS:,} tokens, {ranks} rank{'s'[: ranks - 1]}"
        rows.append(Row(what=f"{what}: memory a rank", value=figures["bytes"] / 1e6, unit="MB", target="", met=True))
        apart = predicted[ranks] / figures["bytes"] - 1
        rows.append(
            Row(
                what=f"{what}: as sluice config check counts it / measured - 1",
                value=100 * apart,
                unit="%",
                target=f"within {100 * APART:g}",
                met=abs(apart) <= APART,
            )
        )
        if ranks > 1:
            share, target = figures["bytes"] / found[1]["bytes"], TARGETS[ranks]
            rows.append(
                Row(
                    what=f"{what}: memory a rank / one rank's",
                    value=share,
                    unit="",
                    target=f"<= {target}",
                    met=share <= target,
                )
            )
    return rows


def _predicted_bytes(model: Path, ranks: int) -> int:
    """What `sluice config check` counts for a rank's slice of the sequence."""
    tokens = -(-(TOKENS - 1) // ranks)
    work = Work(tokens=tokens, targets=min(tokens, TOKENS - PROMPT), several=False)
    return rank_memory(read_shape(model), _config(model, ranks), work=work, packed_kernel=False).total_bytes


def _measure(model: Path, out: Path, ranks: int) -> dict[str, float]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    subprocess.run(
        [sys.executable, *torchrun, "-m", "benchmarks.context_parallel", str(model), str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | _MALLOC,
        check=True,
    )
    return json.loads(out.read_text())


def _rank(model: Path, out: Path) -> None:
    """One rank's part; the leader writes the figures of the long step."""
    torch.set_num_threads(1)
    ranks = join_ranks()
    gc.collect()
    base = ranks.largest(torch.tensor([_resident_bytes()], dtype=torch.float64))
    config = _config(model, ranks.size)
    policy = load_policy(config, ranks)
    trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)
    trainer.train(_batch(0, tokens=64))
    gc.collect()
    metrics = trainer.train(_batch(1, tokens=TOKENS))
    if ranks.leads:
        figures = {
            "bytes": metrics["learner/peak_memory_bytes"] - float(base),
            "loss": metrics["loss/policy"],
            "norm": metrics["loss/grad_norm"],
        }
        out.write_text(json.dumps(figures))
    ranks.leave()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _config(model: Path, ranks: int) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(model), "dtype": "float32"},
            "data": {
                "train_files": ["none.jsonl"],
                "train_batch_size": 1,
                "max_prompt_length": PROMPT,
                "max_response_length": TOKENS - PROMPT,
            },
            "rollout": {"n": 2},
            "learner": {
                "max_tokens_per_micro_batch": -(-TOKENS // ranks),
                "context_parallel_size": ranks,
                "logprob_chunk_tokens": 512,
                "share_prompts": "never",
            },
            "launch": {"learner_nproc_per_node": ranks},
        }
    )


def _batch(step: int, *, tokens: int) -> Batch:
    """One group of one sample."""
    rng = np.random.default_rng(step)
    prompt = min(PROMPT, tokens // 2)
    one = TrainSequence(
        token_ids=rng.integers(0, VOCABULARY, tokens).astype(np.int32),
        prompt_tokens=prompt,
        rollout_logprobs=np.full(tokens - prompt, -np.log(VOCABULARY), np.float32),
        versions=np.full(tokens - prompt, step, np.int32),
        reward=1.0,
        truncated=False,
    )
    return Batch(step=step, digest="benchmark", groups=(TrainGroup(group_id="g", sequences=(one,)),))


def _write_model(folder: Path) -> Path:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1536,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=TOKENS,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    end_process(partial(_rank, *(Path(argument) for argument in sys.argv[1:])))
