"""Tokens/s of the rollout's engines on the random model; vLLM where it is importable."""

import importlib.util
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.gpu_parts.context import Context, Figure
from benchmarks.gpu_parts.learner import written_model
from services.rollout.engine import Engine, SampleRequest
from services.rollout.model_files import read_model


def run(context: Context) -> Iterator[Figure]:
    """The rate of each engine, over what reading the weights once a step would allow."""
    from services.rollout.adapters.transformers_engine import TransformersEngine

    model, sequences = read_model(written_model(context)), 4 if context.small else 64
    engine: Engine = TransformersEngine(model, dtype=context.dtype, max_model_len=1024, max_num_seqs=sequences)
    yield from _rate(context, engine, "transformers", sequences=sequences, tokens=4 if context.small else 64)
    engine.close()
    del engine
    if context.small or importlib.util.find_spec("vllm") is None:
        yield Figure(what="vllm: left out on a CPU, and where it is not importable", value=0.0, unit="")
        return
    from services.rollout.adapters.engine_environment import set_environment

    set_environment(threads=1)
    from services.rollout.adapters.vllm_engine import VllmEngine

    for overlapped in (True, False):
        engine = VllmEngine(
            model, dtype=context.dtype, max_model_len=1024, max_num_seqs=256, tensor_parallel_size=1,
            gpu_memory_utilization=0.5, enforce_eager=False, kv_cache_bytes=8 << 30, async_scheduling=overlapped,
        )  # fmt: skip
        name = f"vllm, scheduling {'beside' if overlapped else 'between'} steps"
        yield from _rate(context, engine, name, sequences=256, tokens=256)
        engine.close()


def _rate(context: Context, engine: Engine, name: str, *, sequences: int, tokens: int) -> Iterator[Figure]:
    from sluice.policy_version import OWN_WEIGHTS

    engine.version = OWN_WEIGHTS
    rng = np.random.default_rng(0)
    for measured in (False, True):
        before, started = engine.generated_tokens, time.perf_counter()
        for index in range(sequences):
            prompt = tuple(map(int, rng.integers(1, 60, 32)))
            engine.add(
                SampleRequest(
                    sample_id=f"{measured}{index}",
                    prompt_token_ids=prompt,
                    seed=index,
                    temperature=1.0,
                    max_tokens=tokens,
                )
            )
        while engine.running:
            engine.step()
        rate = (engine.generated_tokens - before) / (time.perf_counter() - started)
    weights = sum(path.stat().st_size for path in written_model(context).glob("*.safetensors"))
    steps = rate / sequences * weights  # bytes of weights read a second
    yield context.compared(f"{name}: {sequences} samples at once", rate, "tokens/s", ceiling="memory", rate=steps)
