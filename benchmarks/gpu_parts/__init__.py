"""The parts of benchmarks/one_gpu.py, the most useful first: what is found early is not lost when time runs out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.gpu_parts import attention, ceilings, colocated, demo, engine, learner, pairs, snapshots, suite
from benchmarks.gpu_parts.context import Context, Figure


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One independent measurement."""

    name: str
    what: str
    limit_s: float
    run: Callable[[Context], Iterator[Figure]]
    least_s: float = 5.0
    """With less time left it is not begun."""
    cuda_only: str = ""
    """Why it is left out on a CPU; empty: it is not."""

    def left_out(self, device: str) -> str:
        """Why it is not run on this device; empty where it is."""
        return self.cuda_only if device != "cuda" else ""


MODEL = Part(name="model", what="writes the random model that most others use", limit_s=60, run=learner.write_model)
"""Runs whatever else is chosen."""

PARTS = (
    MODEL,
    Part(name="ceilings", what="versions; products and copies alone, which the others are compared with", limit_s=60,
         run=ceilings.run),
    Part(name="attention", what="variable-length attention at 20k tokens against float32, forward and backward", limit_s=40,
         run=attention.run),
    Part(name="learner", what="a 1.7B shape: tokens/s, MFU, memory; checkpointing, chunk and head variants", limit_s=130,
         run=learner.variants),
    Part(name="snapshots", what="gather, pack and digest: pageable against page-locked memory", limit_s=50, run=snapshots.run),
    Part(name="colocated", what="rollout and learner on one device: three steps with weight pushes", limit_s=80,
         run=colocated.run),
    Part(name="suite", what="tests/gpu", limit_s=120, least_s=30, run=suite.run,
         cuda_only="on a CPU all of tests/gpu is left out"),
    Part(name="engine", what="tokens/s of vLLM where it is, and of the transformers engine", limit_s=60, run=engine.run),
    Part(name="shared", what="a group's prompt computed once against once a sample", limit_s=60, run=learner.shared),
    Part(name="pairs", what="a transfer that fails: both processes live on", limit_s=60, run=pairs.failing),
    Part(name="streams", what="a copy beside computation: in the same stream against one of its own", limit_s=20,
         run=pairs.streams),
    Part(name="demo", what="the demo in bfloat16, real services, some steps", limit_s=150, least_s=60, run=demo.run,
         cuda_only="`make demo` is the same on a CPU"),
)  # fmt: skip
