"""What a change of weights costs two tensor-parallel workers of vLLM: time, and memory beyond the one staged copy.

A random Qwen3 of 196 M parameters, real vLLM on this machine. The limit in the same run: copying the model's bytes once from
memory to memory, and no private memory at all, because workers map the staged copy and take their slices. Also how long
Python stands still in the process that reads a version from a file (`weights.backend: file`).
"""

import gc
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.report import Row

WORKERS = 2
LOADS = 3
LAYERS, HIDDEN, WIDTH, VOCABULARY = 12, 1024, 3072, 32_000
SAMPLE_S = 0.002

PAUSE_S = 0.1
"""Chosen: a fifth of what reading with Python's lock held stops others for, and above what two overloaded cores do anyway."""


@dataclass(slots=True)
class Peaks:
    """The most that processes had, sampled, above what they had before."""

    private_bytes: dict[int, int] = field(default_factory=dict)
    """Anonymous memory by process id."""
    dev_shm_bytes: int = 0


def run() -> list[Row]:
    """Loads versions into two workers, then reads a file."""
    from services.rollout.adapters.engine_environment import set_environment

    set_environment(threads=1)
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
        return [*_loads(Path(folder)), *_file(Path(folder))]


def _loads(folder: Path) -> list[Row]:
    from services.rollout.adapters.vllm_engine import VllmEngine
    from services.rollout.model_files import read_model

    layout = _write_model(folder)
    engine = VllmEngine(
        read_model(folder),
        dtype="bfloat16",
        max_model_len=256,
        max_num_seqs=8,
        tensor_parallel_size=WORKERS,
        gpu_memory_utilization=0.5,
        enforce_eager=False,
        kv_cache_bytes=32 << 20,
    )
    try:
        rollout, workers = os.getpid(), _children()
        seconds: list[float] = []
        copies: list[float] = []
        peaks = Peaks()
        for number in range(LOADS + 1):
            weights = _version(layout, number)
            with _sampled([rollout, *workers]) as seen:
                started = time.perf_counter()
                engine.load_weights(weights.manifest, weights.buffer, recompute_kv=False)
                took = time.perf_counter() - started
            if number:  # the first load also makes memory that stays
                seconds.append(took)
                peaks = max(peaks, seen, key=lambda each: sum(each.private_bytes.values()))
            into = np.empty_like(weights.buffer)
            into[:] = 1  # its pages are there
            copies.append(_time(lambda to=into, buffer=weights.buffer: np.copyto(to, buffer)))
    finally:
        engine.close()
    total = layout.total_bytes
    worker = max(peaks.private_bytes[each] for each in workers) / total
    what = f"{total / 1e6:.0f} MB into {WORKERS} workers"
    load_s = float(np.median(seconds))
    return [
        Row(what=f"load, {what}", value=load_s, unit="s", target="", met=True),
        Row(what="load / one copy of the bytes", value=load_s / float(np.median(copies)), unit="", target="", met=True),
        Row(
            what="private memory of a worker beyond its model / bytes",
            value=worker,
            unit="",
            target="<= 0.1",
            met=worker <= 0.1,
        ),
        Row(
            what="private memory of the rollout / bytes",
            value=peaks.private_bytes[rollout] / total,
            unit="",
            target="",
            met=True,
        ),
        Row(what="/dev/shm / bytes", value=peaks.dev_shm_bytes / total, unit="", target="", met=True),
    ]


def _file(folder: Path) -> list[Row]:
    """Reads a version's file while another thread ticks."""
    from sluice.weights import snapshot_files

    weights = _version(_layout(_shapes()), 0)
    path = snapshot_files.write_snapshot(folder / "pushed", weights)
    total = weights.manifest.total_bytes
    took, pauses, peak = [], [], 0.0
    for _ in range(LOADS):
        with _sampled([os.getpid()]) as seen, _ticking() as longest:
            took.append(_time(lambda: snapshot_files.read_snapshot(path)))
            pauses.append(longest())
        peak = max(peak, seen.private_bytes[os.getpid()] / total)
    pause_s = min(pauses)  # what holds Python's lock does so each time; what else the machine does comes and goes
    return [
        Row(
            what=f"read a file of {total / 1e6:.0f} MB, digest included",
            value=float(np.median(took)),
            unit="s",
            target="",
            met=True,
        ),
        Row(
            what="pause of another thread meanwhile, the longest of a read",
            value=pause_s,
            unit="s",
            target=f"<= {PAUSE_S}",
            met=pause_s <= PAUSE_S,
        ),
        Row(what="private memory while reading / bytes", value=peak, unit="", target="", met=True),
    ]


def _write_model(folder: Path):
    """Writes a model folder; returns the layout of its snapshots."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=64,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config).bfloat16()
    model.save_pretrained(folder)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    assert shapes == _shapes()
    return _layout(shapes)


def _shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of the model by name."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        shapes |= {f"{name}self_attn.{each}_proj.weight": (HIDDEN, HIDDEN) for each in "qkvo"}
        shapes |= {f"{name}self_attn.{each}_norm.weight": (64,) for each in "qk"}
        shapes |= {f"{name}mlp.{each}_proj.weight": (WIDTH, HIDDEN) for each in ("gate", "up")}
        shapes[f"{name}mlp.down_proj.weight"] = (HIDDEN, WIDTH)
        shapes |= {f"{name}{each}_layernorm.weight": (HIDDEN,) for each in ("input", "post_attention")}
    return shapes


def _layout(shapes: dict[str, tuple[int, ...]]):
    from sluice.weights.manifest import plan

    return plan([(name, "bfloat16", shape) for name, shape in shapes.items()], bucket_bytes=1 << 20)


def _version(layout, number: int):
    """A version of small random numbers in staged memory, as a receiver leaves it."""
    from sluice.policy_version import PolicyVersion
    from sluice.weights import staging
    from sluice.weights.snapshot import Packer

    packer = Packer(layout, staging.new(layout.total_bytes))
    noise = np.random.default_rng(number)
    for spec in layout.tensors:
        numbers = noise.standard_normal(spec.size_bytes // 2, np.float32) * 0.02
        packer.put(
            spec.name, (numbers.view(np.uint32) >> 16).astype(np.uint16)
        )  # the upper half of a float32 is a bfloat16
    return packer.seal(PolicyVersion(lineage="a", number=number))


def _children() -> list[int]:
    import multiprocessing

    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


@contextmanager
def _sampled(processes: Sequence[int]) -> Iterator[Peaks]:
    """Peaks while the block runs."""
    gc.collect()
    seen, ended = Peaks(), threading.Event()
    before, shm_before = {each: _private_bytes(each) for each in processes}, _dev_shm_bytes()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            for each in processes:
                now = _private_bytes(each) - before[each]
                seen.private_bytes[each] = max(now, seen.private_bytes.get(each, 0))
            seen.dev_shm_bytes = max(seen.dev_shm_bytes, _dev_shm_bytes() - shm_before)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@contextmanager
def _ticking() -> Iterator[Callable[[], float]]:
    """How long at most another thread did not get to run."""
    longest, ended = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not ended.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest[0], last = max(longest[0], now - last), now

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield lambda: longest[0]
    finally:
        ended.set()
        thread.join()


def _private_bytes(process: int) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    return 0


def _dev_shm_bytes() -> int:
    facts = os.statvfs("/dev/shm")
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize


def _time(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


if __name__ == "__main__":
    from benchmarks.report import show

    show("staged_copy", run())
    sys.exit(0)
