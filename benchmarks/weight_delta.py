"""What of a version changes in a step, what a delta of the step weighs against the whole version, and what it costs to make.

SmolLM2-135M-Instruct (the folder that `make demo-llm` makes) takes real steps of the learner: its AdamW, its loss, its clip,
16 updates a step over groups of short sums, some answers right and some wrong. The first step, in which AdamW has no
moments yet and moves every weight by about the learning rate, is not measured; each later one has the next learning rate.
Both forms in which a version may travel are measured on the same steps: the float32 master weights as bfloat16, and as they
are. Matrix products are float32, which a CPU computes faster than bfloat16.

Encoding and decoding are timed in one thread, by the thread's own clock, in GB of the whole version a second.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer

from benchmarks.report import Row
from services.learner.batches.batch import Batch, TrainGroup, TrainSequence
from services.learner.distributed.ranks import join_ranks
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.snapshot.pack import SnapshotPacker
from services.learner.training.train_step import Trainer
from sluice.cli.up import cache_dir
from sluice.config.schema import Config
from sluice.policy_version import PolicyVersion
from sluice.weights import delta
from sluice.weights.snapshot import Snapshot

RATES = (1e-6, 5e-6, 1e-5, 1e-4)
DTYPES = ("bfloat16", "float32")
UPDATES, SAMPLES = 16, 4
ROUNDS = 3
TARGET, TARGET_RATE, TARGET_DTYPE = 0.15, 1e-6, "bfloat16"
PAYS = 0.5
"""The largest share of the version that a learner sends as a delta (sluice/weights/deltas.py)."""


def run() -> list[Row]:
    """One step at each learning rate."""
    path = cache_dir().absolute() / "smollm2-135m-instruct"
    if not path.exists():
        raise SystemExit(f"{path}: is not there; `make demo-llm` makes it")
    rows = []
    for lr, versions in steps(path):
        for dtype, (old, new) in versions.items():
            rows += _rows(lr, dtype, old, new)
    return rows


def steps(path: Path) -> Iterator[tuple[float, dict[str, tuple[Snapshot, Snapshot]]]]:
    """A step at each of RATES: the rate, and the versions before and after the step by the dtype in which they travel."""
    torch.set_num_threads(1)
    ranks = join_ranks()
    groups = _groups(path, steps=1 + len(RATES))
    config = _config(path, RATES[0], "float32")
    policy = load_policy(config, ranks)
    optimizer = make_optimizer(policy, config)
    packers = {
        dtype: SnapshotPacker(policy=policy, config=_config(path, RATES[0], dtype), ranks=ranks) for dtype in DTYPES
    }
    old: dict[str, Snapshot] = {}
    for number, (lr, of_step) in enumerate(zip((RATES[0], *RATES), groups, strict=True)):
        trainer = Trainer(policy=policy, optimizer=optimizer, config=_config(path, lr, "float32"), ranks=ranks)
        trainer.step = number
        trainer.train(Batch(step=number, digest="benchmark", groups=tuple(of_step)))
        new = _gathered(packers, number + 1)
        if old:
            yield lr, {dtype: (old[dtype], new[dtype]) for dtype in DTYPES}
        old = new
    ranks.leave()


def _config(path: Path, lr: float, dtype: str) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(path), "dtype": dtype},
            "data": {"train_files": ["none.jsonl"], "train_batch_size": UPDATES, "max_response_length": 64},
            "rollout": {"n": SAMPLES},
            "algorithm": {"proximal": "recompute"},
            "coordinator": {"max_staleness": 0},
            "learner": {"lr": lr, "mini_batch_size": 1, "max_tokens_per_micro_batch": 1024},
        }
    )


def _gathered(packers: dict[str, SnapshotPacker], number: int) -> dict[str, Snapshot]:
    found = {}
    for dtype, packer in packers.items():
        snapshot = packer.gather(PolicyVersion(lineage="a", number=number))
        assert snapshot is not None
        found[dtype] = snapshot
    return found


def _groups(path: Path, *, steps: int) -> list[list[TrainGroup]]:
    """Sums in the model's own chat form; of the answers of a group one or two are right."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    rng = np.random.default_rng(0)
    made = []
    for step in range(steps):
        groups = []
        for number in range(UPDATES):
            a, b = (int(term) for term in rng.integers(1, 100, 2))
            asked = [{"role": "user", "content": f"What is {a} + {b}? Answer with a number."}]
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            right = 1 + number % 2
            answers = [a + b + (0 if sample < right else int(rng.integers(1, 20))) for sample in range(SAMPLES)]
            texts = [f"{answer}" if sample % 2 else f"{a} + {b} = {answer}" for sample, answer in enumerate(answers)]
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            groups.append(
                TrainGroup(
                    group_id=f"{step}-{number}",
                    sequences=tuple(
                        _sequence(
                            ids,
                            [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id],
                            reward=float(answer == a + b),
                        )
                        for text, answer in zip(texts, answers, strict=True)
                    ),
                )
            )
        made.append(groups)
    return made


def _sequence(prompt: list[int], answer: list[int], *, reward: float) -> TrainSequence:
    return TrainSequence(
        token_ids=np.array([*prompt, *answer], np.int32),
        prompt_tokens=len(prompt),
        rollout_logprobs=np.full(len(answer), -1.0, np.float32),
        versions=np.zeros(len(answer), np.int32),
        reward=reward,
        truncated=False,
    )


def _rows(lr: float, dtype: str, old: Snapshot, new: Snapshot) -> list[Row]:
    tensors, total = new.manifest.tensors, new.manifest.total_bytes
    made = b""
    encoding, decoding = [], []
    for _ in range(ROUNDS):
        started = time.thread_time()
        made = delta.encode(old.buffer, new.buffer, tensors, most_bytes=2 * total)
        encoding.append(time.thread_time() - started)
        assert made is not None
        buffer = old.buffer.copy()
        started = time.thread_time()
        delta.apply(made, buffer, tensors)
        decoding.append(time.thread_time() - started)
        assert (buffer == new.buffer).all(), "not the same bits"
    share = len(made) / total
    aims = (lr, dtype) == (TARGET_RATE, TARGET_DTYPE)
    what = f"lr {lr:g}, {dtype}"
    return [
        Row(what=f"{what}: elements that changed", value=changed_share(old, new), unit="", target="", met=True),
        Row(
            what=f"{what}: delta / whole" + ("" if share <= PAYS else " - a delta does not pay"),
            value=share,
            unit="",
            target=f"<= {TARGET}" if aims else "",
            met=share <= TARGET or not aims,
        ),
        Row(what=f"{what}: encoded", value=total / np.median(encoding) / 1e9, unit="GB/s", target="", met=True),
        Row(what=f"{what}: decoded", value=total / np.median(decoding) / 1e9, unit="GB/s", target="", met=True),
    ]


def changed_share(old: Snapshot, new: Snapshot) -> float:
    """The share of elements whose bits differ."""
    differ = elements = 0
    for (spec, before), (_, after) in zip(old.tensors(), new.tensors(), strict=True):
        width = f"<u{spec.size_bytes // max(1, int(np.prod(spec.shape)))}"
        differ += int(np.count_nonzero(before.view(width) != after.view(width)))
        elements += before.size // int(width[2:])
    return differ / elements
