"""The memory that `sluice config check` predicts for a rank of the learner, against the peak that a rank reaches.

A random Llama of 122 million parameters trains in processes of its own: with and without gradient checkpointing, on one rank
and on two, and with a vocabulary that makes the head dominate. A small step makes AdamW's moments; then a step of two
micro-batches a rank is measured, each the largest that the recipe permits, which is what the prediction is about. Measured is
`learner/peak_memory_bytes`, the peak resident set, less what the process held when everything was imported and the ranks had
met.

All is in float32: a CPU computes bfloat16 too slowly for a step of this size. The prediction knows tensors alone. glibc
returns large tensors to the system at once and keeps small ones, and kernels have buffers: that is the difference.
"""

import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.report import Row
from services.learner.batches.batch import Batch, TrainGroup, TrainSequence
from services.learner.distributed.ending import end_process
from services.learner.distributed.ranks import join_ranks
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.training.train_step import Trainer
from sluice.config.schema import Config
from sluice.sizing.config_json import read_shape
from sluice.sizing.learner import rank_memory

TARGET = 0.15
"""Largest relative difference."""

PROMPT, COMPLETION = 32, 224
"""Tokens; every sequence is at its limits."""

_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 20)}
"""glibc raises both by itself up to 32 MiB when large blocks are freed; then the heap keeps what tensors gave back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One recipe."""

    name: str
    ranks: int = 1
    checkpointing: bool = False
    tokens: int = 1024
    """`learner.max_tokens_per_micro_batch`."""
    vocabulary: int = 16_000

    @property
    def sequences(self) -> int:
        """Sequences of a step: two micro-batches a rank."""
        return 2 * self.ranks * self.tokens // (PROMPT + COMPLETION)


CASES = (
    Case(name="one rank"),
    Case(name="one rank, checkpointing", checkpointing=True),
    Case(name="two ranks", ranks=2),
    Case(name="two ranks, checkpointing", ranks=2, checkpointing=True),
    Case(name="one rank, vocabulary of 64,000", checkpointing=True, vocabulary=64_000),
)


def run() -> list[Row]:
    """Every case once: a peak has no noise worth a second."""
    return [row for case in CASES for row in _rows(case)]


def _rows(case: Case) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        model = _write_model(Path(folder) / "model", vocabulary=case.vocabulary)
        config = _config(case, model)
        shape = read_shape(model)
        predicted = rank_memory(shape, config, packed_kernel=False).total_bytes
        measured = _measure(case, model, Path(folder))
    apart = predicted / measured - 1
    what = f"{case.name}: {shape.parameters / 1e6:.0f} M parameters, {case.tokens:,} tokens"
    return [
        Row(what=f"{what}: predicted", value=predicted / 1e6, unit="MB", target="", met=True),
        Row(what=f"{what}: measured", value=measured / 1e6, unit="MB", target="", met=True),
        Row(
            what=f"{what}: predicted / measured - 1",
            value=100 * apart,
            unit="%",
            target=f"within {100 * TARGET:g}",
            met=abs(apart) <= TARGET,
        ),
    ]


def _measure(case: Case, model: Path, folder: Path) -> int:
    """Bytes of the rank with the highest peak above its base."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.ranks)]
    out = folder / "peak.json"
    subprocess.run(
        [sys.executable, *torchrun, "-m", "benchmarks.sizing", json.dumps(asdict(case)), str(model), str(out)],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | _MALLOC,
        check=True,
    )
    return json.loads(out.read_text())["above_base_bytes"]


def _rank(case: Case, model: Path, out: Path) -> None:
    """One rank's part; the leader writes the peak of the second step above the largest base."""
    torch.set_num_threads(1)
    ranks = join_ranks()
    gc.collect()
    base = ranks.largest(torch.tensor([_resident_bytes()], dtype=torch.float64))
    config = _config(case, model)
    policy = load_policy(config, ranks)
    trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)
    gc.collect()
    metrics: Mapping[str, float] = {}
    for step, groups in enumerate((1, case.sequences // 2)):
        metrics = trainer.train(_batch(case, step, groups=groups))
    if ranks.leads:
        peak = metrics["learner/peak_memory_bytes"]
        out.write_text(json.dumps({"above_base_bytes": peak - float(base)}))
    ranks.leave()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _config(case: Case, model: Path) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(model), "dtype": "float32"},
            "data": {
                "train_files": ["none.jsonl"],
                "train_batch_size": case.sequences // 2,
                "max_prompt_length": PROMPT,
                "max_response_length": COMPLETION,
            },
            "rollout": {"n": 2},
            "learner": {
                "max_tokens_per_micro_batch": case.tokens,
                "gradient_checkpointing": case.checkpointing,
                "logprob_chunk_tokens": 512,
            },
            "launch": {"learner_nproc_per_node": case.ranks},
        }
    )


def _write_model(folder: Path, *, vocabulary: int) -> Path:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=768,
        intermediate_size=2304,
        num_hidden_layers=16,
        num_attention_heads=12,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def _batch(case: Case, step: int, *, groups: int) -> Batch:
    rng = np.random.default_rng(step)
    return Batch(
        step=step,
        digest="benchmark",
        groups=tuple(_group(rng, case, f"g{step}-{index}") for index in range(groups)),
    )


def _group(rng: np.random.Generator, case: Case, name: str) -> TrainGroup:
    prompt = rng.integers(0, case.vocabulary, PROMPT)
    return TrainGroup(group_id=name, sequences=tuple(_sequence(rng, case, prompt, right) for right in (0.0, 1.0)))


def _sequence(rng: np.random.Generator, case: Case, prompt: np.ndarray, reward: float) -> TrainSequence:
    return TrainSequence(
        token_ids=np.concatenate([prompt, rng.integers(0, case.vocabulary, COMPLETION)]).astype(np.int32),
        prompt_tokens=PROMPT,
        rollout_logprobs=np.full(COMPLETION, -np.log(case.vocabulary), np.float32),
        versions=np.zeros(COMPLETION, np.int32),
        reward=reward,
        truncated=False,
    )


def main(arguments: Sequence[str]) -> None:
    """One rank of one case."""
    case, model, out = arguments
    end_process(partial(_rank, Case(**json.loads(case)), Path(model), Path(out)))


if __name__ == "__main__":
    main(sys.argv[1:])
