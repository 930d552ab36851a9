"""`rollout.max_num_seqs: auto` against every fixed number, with a KV cache a quarter of what the largest number would need.

Simulated: the rollout's own controller on a paged engine in virtual time (benchmarks/simulated/paged_engine.py), so the
figures are the same on any machine. Real: vLLM on a CPU, a small random model whose completions end by chance (four of 512
tokens end one, and at most LONGEST tokens), one engine for all settings, in turns; tokens per second of the process's own CPU
time, so that other work on the machine does not count. The best fixed number is found in the same run; who runs a recipe does
not know it beforehand, and it moves as completions grow.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.report import Row
from benchmarks.simulated.paged_engine import BLOCK_TOKENS, PagedEngine, Simulated
from services.rollout.concurrency import Concurrency
from services.rollout.engine import Engine, SampleRequest
from sluice.policy_version import PolicyVersion

TARGET, MOST_PREEMPTIONS = 0.95, 0.2
TOO_SMALL = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """One setting of one workload."""

    tokens_per_s: float
    preemptions: float
    """A sample."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Groups of samples with log-normal lengths. `at_once` groups are there together, the next ones when all have ended."""

    name: str
    groups: int
    samples: int
    prompt_tokens: int
    median_tokens: int
    sigma: float
    longest: int
    at_once: int
    capacity: int = 256
    numbers: tuple[int, ...] = (32, 48, 64, 80, 96, 128, 256)

    def draw(self) -> list[list[Simulated]]:
        """The groups, fresh."""
        random = np.random.default_rng(0)
        lengths = self.median_tokens * np.exp(self.sigma * random.standard_normal((self.groups, self.samples)))
        return [
            [
                Simulated(group=group, prompt_tokens=self.prompt_tokens, tokens=tokens, max_tokens=self.longest)
                for tokens in row
            ]
            for group, row in enumerate(np.clip(lengths.round(), 1, self.longest).astype(int).tolist())
        ]

    @property
    def blocks(self) -> int:
        """A cache TOO_SMALL times smaller than `capacity` samples at their ends would fill."""
        mean = statistics.fmean(sample.tokens for group in self.draw() for sample in group)
        needed = self.capacity * (mean + self.prompt_tokens / self.samples)
        return round(needed / TOO_SMALL / BLOCK_TOKENS)


WORKLOADS = (
    Workload(
        name="a steady stream of groups of 16",
        groups=96, samples=16, prompt_tokens=256, median_tokens=400, sigma=0.7, longest=2048, at_once=96,
    ),
    Workload(
        name="batches of 32 groups of 16, each begun together",
        groups=96, samples=16, prompt_tokens=256, median_tokens=400, sigma=0.7, longest=2048, at_once=32,
    ),
    Workload(
        name="groups of 128 with prompts of 2048",
        groups=12, samples=128, prompt_tokens=2048, median_tokens=300, sigma=0.9, longest=2048, at_once=12,
    ),
    Workload(
        name="a large cache, 1024 samples at most",
        groups=128, samples=16, prompt_tokens=256, median_tokens=400, sigma=0.7, longest=2048, at_once=128,
        capacity=1024, numbers=(192, 256, 288, 320, 384, 1024),
    ),
)  # fmt: skip


def run() -> list[Row]:
    """Every workload, then vLLM."""
    rows: list[Row] = []
    for workload in WORKLOADS:
        fixed = {number: _simulate(workload, number) for number in workload.numbers}
        rows += _rows(f"simulated, {workload.name}", fixed, _simulate(workload, None))
    return rows + _rows("vLLM on a CPU, groups of 16", *_vllm())


def _rows(name: str, fixed: dict[int, Figures], auto: Figures) -> list[Row]:
    best, largest = max(fixed, key=lambda number: fixed[number].tokens_per_s), max(fixed)
    most = fixed[best]
    calm = max(
        (number for number in fixed if fixed[number].preemptions <= MOST_PREEMPTIONS),
        key=lambda number: fixed[number].tokens_per_s,
    )
    ratio = auto.tokens_per_s / most.tokens_per_s
    return [
        Row(
            what=f"{name}: tokens/s of auto / best fixed number ({best}, {most.preemptions:.2f} preemptions a sample)",
            value=ratio, unit="x", target=f">= {TARGET}", met=ratio >= TARGET,
        ),
        Row(
            what=f"{name}: preemptions a sample of auto",
            value=auto.preemptions, unit="", target=f"<= {MOST_PREEMPTIONS}", met=auto.preemptions <= MOST_PREEMPTIONS,
        ),
        Row(
            what=f"{name}: tokens/s of auto / best fixed number without thrash ({calm}, "
            f"{fixed[calm].preemptions:.2f} preemptions a sample)",
            value=auto.tokens_per_s / fixed[calm].tokens_per_s, unit="x", target="shown", met=True,
        ),
        Row(
            what=f"{name}: tokens/s of {largest} / best fixed number ({fixed[largest].preemptions:.2f} preemptions a sample)",
            value=fixed[largest].tokens_per_s / most.tokens_per_s, unit="x", target="shown", met=True,
        ),
    ]  # fmt: skip


def _simulate(workload: Workload, number: int | None) -> Figures:
    """With a fixed number of samples at once, or by the controller."""
    engine, groups = PagedEngine(blocks=workload.blocks, capacity=workload.capacity), workload.draw()
    concurrency = Concurrency(most=workload.capacity)
    engine.limit = number or concurrency.limit
    for first in range(0, len(groups), workload.at_once):
        for sample in itertools.chain.from_iterable(groups[first : first + workload.at_once]):
            engine.add(sample)
        while engine.running or engine.waiting:
            engine.step()
            if number is None:
                engine.limit = concurrency.after_step(
                    use=engine.kv_use,
                    running=len(engine.running),
                    waiting=len(engine.waiting),
                    preemptions=engine.preemptions,
                )
    samples = list(itertools.chain.from_iterable(groups))
    return Figures(
        tokens_per_s=sum(sample.tokens for sample in samples) / engine.now_s,
        preemptions=engine.preemptions / len(samples),
    )


# --- vLLM -------------------------------------------------------------------------------------------------------------

GROUPS, SAMPLES, PROMPT_TOKENS, LONGEST = 12, 16, 48, 384
VOCABULARY, END_TOKENS = 512, (0, 1, 2, 3)
NUMBERS, CAPACITY, ROUNDS = (32, 64, 96, 128, 256), 256, 2
CACHE_BLOCKS = CAPACITY * (VOCABULARY // len(END_TOKENS)) // TOO_SMALL // 32
"""Blocks of 32 tokens: a quarter of CAPACITY completions of the mean length."""
WIDTH, LAYERS = 128, 2


def _vllm() -> tuple[dict[int, Figures], Figures]:
    """The fixed numbers, and the controller: medians of ROUNDS."""
    from services.rollout.adapters.engine_environment import set_environment

    set_environment(threads=1)  # before vLLM and torch are imported
    from services.rollout.adapters.vllm_engine import VllmEngine
    from services.rollout.model_files import read_model

    with tempfile.TemporaryDirectory() as folder:
        engine = VllmEngine(
            read_model(_write_model(Path(folder))),
            dtype="float32",
            max_model_len=512,
            max_num_seqs=CAPACITY,
            tensor_parallel_size=1,
            gpu_memory_utilization=0.5,
            enforce_eager=True,
            kv_cache_bytes=CACHE_BLOCKS * 32 * 2 * LAYERS * WIDTH * 4,
        )
    engine.version = PolicyVersion(lineage="a", number=0)
    measured: dict[int | None, list[Figures]] = {number: [] for number in (*NUMBERS, None)}
    _draw(engine, 64, groups=4)
    for _ in range(ROUNDS):
        for number, figures in measured.items():
            figures.append(_draw(engine, number, groups=GROUPS))
    engine.close()
    medians = {number: _median(figures) for number, figures in measured.items()}
    return {number: medians[number] for number in NUMBERS}, medians[None]


def _draw(engine: Engine, number: int | None, *, groups: int) -> Figures:
    """The same samples each time, with a fixed number at once, or by a controller that begins anew."""
    concurrency = Concurrency(most=CAPACITY)
    engine.limit = number or concurrency.limit
    for group, index in itertools.product(range(groups), range(SAMPLES)):
        engine.add(
            SampleRequest(
                sample_id=f"{group}/{index}",
                prompt_token_ids=_PROMPTS[group],
                seed=group * SAMPLES + index,
                temperature=1.0,
                max_tokens=LONGEST,
            )
        )
    tokens, before, started_s = engine.generated_tokens, engine.preemptions, time.process_time()
    while engine.running:
        engine.step()
        if number is None:
            started, use = engine.started, engine.kv_use
            assert use is not None
            engine.limit = concurrency.after_step(
                use=use,
                running=started,
                waiting=len(engine.running) - started,
                preemptions=engine.preemptions - before,
            )
    seconds = time.process_time() - started_s
    return Figures(
        tokens_per_s=(engine.generated_tokens - tokens) / seconds,
        preemptions=(engine.preemptions - before) / (groups * SAMPLES),
    )


_PROMPTS = [
    tuple(np.random.default_rng(group).integers(len(END_TOKENS), VOCABULARY, PROMPT_TOKENS).tolist())
    for group in range(GROUPS)
]


def _median(figures: Sequence[Figures]) -> Figures:
    return Figures(
        tokens_per_s=statistics.median(one.tokens_per_s for one in figures),
        preemptions=statistics.median(one.preemptions for one in figures),
    )


def _write_model(folder: Path) -> Path:
    """A model of 0.3 million random parameters, whose next token is nearly even over the vocabulary."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=4,
        head_dim=WIDTH // 4, intermediate_size=2 * WIDTH, max_position_embeddings=512, tie_word_embeddings=True,
        eos_token_id=list(END_TOKENS), bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
