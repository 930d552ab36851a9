"""Peak host memory of a rank that loads a model, its own slices of the files or the whole, as a share of the float32 model.

Both ways are the learner's own `load_policy`, proof and all, on the same files over gloo; the second is what it does with a
folder that transformers has to convert. Every rank loads a tiny model first, so that what is imported and made once is no
part of the figures. What counts is a rank's anonymous memory (RssAnon, read every 2 ms by a thread) above that before the
load. Pages of mapped files, which the kernel takes back whenever it needs room, are not in it; the kernel's own peak of both
together (VmHWM, set back before the load, above both before the load) stands beside it, and no moment is missing from it.
The files were just written, so they come from the page cache.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import blake3
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import Qwen3Config

from benchmarks.report import Row
from services.learner.distributed.ending import end_process
from services.learner.distributed.ranks import join_ranks
from services.learner.policy import model
from services.learner.policy.forward import Policy
from services.learner.policy.model_config import empty_model
from services.learner.policy.stored_model import StoredModel
from sluice.config.schema import Config
from sluice.weights.tensors import as_bytes

RANKS = (1, 2, 4)
DTYPES = (torch.bfloat16, torch.float32)
FILE_BYTES = 200_000_000
SHARE, CONSTANT_GB = 1.2, 0.12
"""The target: SHARE / N of the model and a constant, most of which is rank 0's proof on a copy with two layers."""

IN_SHARDS, WHOLE = "in shards", "whole on every rank"


def run() -> list[Row]:
    """Peaks of the rank with the highest, and seconds of the slowest."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        tiny = _write_model(Path(scratch) / "tiny", dtype=torch.float32, layers=1, width=64)
        for dtype in DTYPES:
            name = str(dtype).removeprefix("torch.")
            path = _write_model(Path(scratch) / name, dtype=dtype, layers=16, width=1024)
            for ranks in RANKS:
                found = {way: _measure(way, path, tiny, Path(scratch), ranks) for way in (WHOLE, IN_SHARDS)}
                assert _digests(found[WHOLE]) == _digests(found[IN_SHARDS]), "the ways differ in their weights"
                rows += _rows(f"{name} files, {ranks} rank{'s'[: ranks - 1]}", ranks, found)
    return rows


def _rows(case: str, ranks: int, found: dict[str, list[dict[str, Any]]]) -> list[Row]:
    model_bytes = found[WHOLE][0]["model_bytes"]
    limit = SHARE / ranks + 1e9 * CONSTANT_GB / model_bytes
    rows = []
    for way, of_ranks in found.items():
        peak, both, seconds = (max(rank[key] for rank in of_ranks) for key in ("anon", "hwm", "s"))
        said = f"{1e-9 * peak:.2f} GB, {1e-9 * both:.2f} with pages of files, {seconds:.1f} s"
        ours = way == IN_SHARDS
        rows.append(
            Row(
                what=f"{case}, {way} ({said})",
                value=peak / model_bytes,
                unit=f"of {1e-9 * model_bytes:.2f} GB",
                target=f"<= {SHARE:g} / {ranks} + {CONSTANT_GB:g} GB = {limit:.2f}" if ours else "",
                met=not ours or peak / model_bytes <= limit,
            )
        )
    return rows


def _digests(of_ranks: list[dict[str, Any]]) -> list[str]:
    return [rank["digest"] for rank in of_ranks]


def _measure(way: str, path: Path, tiny: Path, scratch: Path, ranks: int) -> list[dict[str, Any]]:
    """What each rank has found, in rank order."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    subprocess.run(
        [sys.executable, *torchrun, "-m", "benchmarks.load_in_shards", way, str(path), str(tiny), str(scratch)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    return [json.loads((scratch / f"{rank}.json").read_text()) for rank in range(ranks)]


def _rank(way: str, path: Path, tiny: Path, out: Path) -> None:
    torch.set_num_threads(1)
    ranks = join_ranks()
    with mock.patch.object(model, "locate_on_all", _never) if way == WHOLE else nullcontext():
        model.load_policy(_config(tiny), ranks)
        before = _memory()
        dist.barrier()
        started = time.perf_counter()
        with _peaks() as peaks:
            policy = model.load_policy(_config(path), ranks)
            dist.barrier()
        seconds = time.perf_counter() - started
    parameters = list(policy.parameters())
    found = {
        "anon": peaks["RssAnon"] - before["RssAnon"],
        "hwm": peaks["VmHWM"] - before["VmRSS"],
        "s": seconds,
        "model_bytes": sum(each.numel() * each.element_size() for each in parameters),
        "digest": _digest(policy),
    }
    (out / f"{ranks.rank}.json").write_text(json.dumps(found))
    ranks.leave()


def _never(*_: Any) -> StoredModel:
    return StoredModel(whole_because="the benchmark asks for it")


@contextmanager
def _peaks() -> Iterator[dict[str, int]]:
    """Fills in bytes at the end: the largest RssAnon of all samples, and VmHWM."""
    Path("/proc/self/clear_refs").write_text("5")
    found, over = {"RssAnon": 0, "VmHWM": 0}, threading.Event()

    def sample() -> None:
        while not over.wait(0.002):
            found["RssAnon"] = max(found["RssAnon"], _memory()["RssAnon"])

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield found
    finally:
        over.set()
        sampler.join()
        found["VmHWM"] = _memory()["VmHWM"]


def _memory() -> dict[str, int]:
    """Bytes by the kernel's name."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1:] == ["kB"]}


def _digest(policy: Policy) -> str:
    hasher = blake3.blake3()
    with torch.no_grad():
        for parameter in policy.parameters():
            hasher.update(as_bytes(parameter.to_local()).data)  # type: ignore[attr-defined]
    return hasher.hexdigest()


def _config(path: Path) -> Config:
    return Config.model_validate(
        {"model": {"path": str(path)}, "data": {"train_files": ["none.jsonl"], "train_batch_size": 6}}
    )


def _write_model(path: Path, *, dtype: torch.dtype, layers: int, width: int) -> Path:
    """A Qwen3 of 319 M weights with 16 layers, tied, in files of FILE_BYTES and an index; no more than one file in memory."""
    config = Qwen3Config(
        vocab_size=64 * width,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 128),
        head_dim=128,
        intermediate_size=3 * width,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
    )
    config.architectures = ["Qwen3ForCausalLM"]
    config.save_pretrained(path)
    files: list[dict[str, torch.Size]] = [{}]
    held_bytes = 0
    for name, parameter in empty_model(config, path=str(path)).named_parameters():
        if held_bytes >= FILE_BYTES:
            files.append({})
            held_bytes = 0
        files[-1][name] = parameter.shape
        held_bytes += parameter.numel() * dtype.itemsize
    placed = {}
    for number, shapes in enumerate(files, start=1):
        file = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        tensors = {name: 0.02 * torch.randn(shape).to(dtype) for name, shape in shapes.items()}
        save_file(tensors, path / file, {"format": "pt"})
        placed |= dict.fromkeys(tensors, file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return path


if __name__ == "__main__":
    end_process(partial(_rank, sys.argv[1], *(Path(argument) for argument in sys.argv[2:])))
