"""For how long a learner of two ranks stops to make a snapshot of its weights, in three ways, in turns, over gloo.

Tensor by tensor is the plain way, and the reference for the bytes: every rank gets every whole float32 tensor, looks
whether it is finite, and the leader converts and packs it. The learner's own way, bucket after bucket, converts and
checks shards where they lie and sends them to the leader alone. One bucket ahead is the same with the next bucket on its
way while the former is packed, which the learner does not do: docs/adr/0007-weight-gather.md.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.report import Row
from services.learner.distributed.ending import end_process
from services.learner.distributed.ranks import LEADER, Ranks, join_ranks
from services.learner.policy.forward import Policy
from services.learner.policy.model import load_policy
from services.learner.snapshot import pack as publish
from services.learner.snapshot.gather import Gatherer
from services.learner.snapshot.pack import SnapshotPacker
from sluice.config.schema import Config
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot
from sluice.weights.tensors import as_bytes

RANKS = 2
ROUNDS = 9
DTYPES = ("bfloat16", "float32")
TARGET = 2.0
VERSION = PolicyVersion(lineage="a", number=1)
PLAIN, OURS, AHEAD = "tensor by tensor", "bucket after bucket", "one bucket ahead"


def run() -> list[Row]:
    """Medians."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(RANKS)]
    with tempfile.TemporaryDirectory() as folder:
        path = _write_model(Path(folder) / "model")
        out = Path(folder) / "times.json"
        subprocess.run(
            [sys.executable, *torchrun, "-m", "benchmarks.weight_gather", str(path), str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True,
        )
        times: dict[str, dict[str, list[float]]] = json.loads(out.read_text())
    rows = []
    for dtype, by_way in times.items():
        medians = {way: statistics.median(seconds) for way, seconds in by_way.items()}
        spread = {way: f"{1e3 * min(seconds):.0f} to {1e3 * max(seconds):.0f}" for way, seconds in by_way.items()}
        rows += [
            Row(what=f"42 M weights as {dtype}, {way} ({spread[way]})", value=1e3 * s, unit="ms", target="", met=True)
            for way, s in medians.items()
        ]
        saved = 1 - statistics.median(a / b for a, b in zip(by_way[AHEAD], by_way[OURS], strict=True))
        speedup = medians[PLAIN] / medians[OURS]
        rows += [
            Row(what=f"{dtype}: saved by {AHEAD}", value=100 * saved, unit="%", target="", met=True),
            Row(
                what=f"{dtype}: {PLAIN} / {OURS}",
                value=speedup,
                unit="",
                target=f">= {TARGET:g}",
                met=speedup >= TARGET,
            ),
        ]
    return rows


def _rank(model: Path, out: Path) -> None:
    """One rank's part; the leader writes the seconds of every round, by dtype and way."""
    torch.set_num_threads(1)
    ranks = join_ranks()
    times = {dtype: _times(model, dtype, ranks) for dtype in DTYPES}
    if ranks.leads:
        out.write_text(json.dumps(times))
    ranks.leave()


def _times(model: Path, dtype: str, ranks: Ranks) -> dict[str, list[float]]:
    config = Config.model_validate(
        {
            "model": {"path": str(model), "dtype": dtype},
            "data": {"train_files": ["none.jsonl"], "train_batch_size": 6},
        }
    )
    policy = load_policy(config, ranks)
    packer = SnapshotPacker(policy=policy, config=config, ranks=ranks)
    with mock.patch.object(publish, "Gatherer", _OneAhead):
        ahead = SnapshotPacker(policy=policy, config=config, ranks=ranks)
    ways: dict[str, Callable[[], Snapshot | None]] = {
        PLAIN: lambda: _tensor_by_tensor(policy, config, ranks),
        OURS: lambda: packer.gather(VERSION),
        AHEAD: lambda: ahead.gather(VERSION),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    digests = set()
    for index in range(ROUNDS + 1):
        for way, gather in ways.items():
            dist.barrier()
            started = time.perf_counter()
            snapshot = gather()
            if index:  # the first round warms up
                seconds[way].append(time.perf_counter() - started)
            digests |= {snapshot.manifest.digest} if snapshot is not None else set()
    assert len(digests) == int(ranks.leads), "the ways differ in their bytes"
    return seconds


@torch.no_grad()
def _tensor_by_tensor(policy: Policy, config: Config, ranks: Ranks) -> Snapshot | None:
    parameters = dict(sorted(policy.causal_lm.named_parameters()))
    named = [(name, config.model.dtype, tuple(p.shape)) for name, p in parameters.items()]
    packer = Packer(plan(named, bucket_bytes=config.weights.bucket_bytes_on("cpu"))) if ranks.leads else None
    for name, parameter in parameters.items():
        assert isinstance(parameter, DTensor)
        whole = parameter.full_tensor()
        assert torch.stack(torch.aminmax(whole)).isfinite().all()
        if packer is not None:
            packer.put(name, as_bytes(whole.to(getattr(torch, config.model.dtype))))
    return packer.seal(VERSION) if packer is not None else None


class _OneAhead(Gatherer):
    """Uses a bucket when the next one's gather has begun: gloo's thread, or NCCL's stream, moves it meanwhile."""

    def gather(self, use: Callable[[str, Tensor], None]) -> None:
        bad = torch.zeros(len(self._wanted), dtype=torch.int32)
        finish = None
        for bucket in self._buckets:
            following = self._start(bucket, bad, use)
            if finish is not None:
                finish()
            finish = following
        if finish is not None:
            finish()
        assert not self._ranks.largest(bad).any()

    def _start(self, bucket: Any, bad: Tensor, use: Callable[[str, Tensor], None]) -> Callable[[], None]:
        part = bucket.part(bad)
        parts = part.new_empty(self._ranks.size, len(part)) if self._ranks.leads else None
        into = None if parts is None else list(parts)
        work = dist.gather(part, into, dst=LEADER, group=self._ranks.mesh.get_group(), async_op=True)
        assert work is not None

        def finish() -> None:
            work.wait()
            if parts is not None:
                bucket.hand_over(parts, use)

        return finish


def _write_model(path: Path) -> Path:
    """42 M weights in 134 tensors; two of every three matrices do not split evenly."""
    model = Qwen3Config(
        vocab_size=8191,
        hidden_size=512,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        intermediate_size=1537,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(model).save_pretrained(path)
    return path


if __name__ == "__main__":
    end_process(partial(_rank, Path(sys.argv[1]), Path(sys.argv[2])))
