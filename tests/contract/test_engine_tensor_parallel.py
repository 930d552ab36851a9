"""vLLM over two worker processes: both map the one staged copy and take their shard of it."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from services.rollout.adapters.engine_environment import set_environment
from services.rollout.engine import SampleRequest
from services.rollout.model_files import read_model

PROMPT = (5, 6, 7)
LONG_PROMPT = tuple(3 + index % 40 for index in range(70))
"""Two blocks of the prefix cache and more."""


@pytest.mark.e2e
def test_two_workers_serve_each_version_exactly_and_reuse_no_older_prefix(tmp_path: Path) -> None:
    set_environment(threads=1)
    from services.rollout.adapters.vllm_engine import VllmEngine
    from sluice.weights import staging
    from tests.tiny_model import load, logprobs, perturbed, snapshot, write_tiny_model

    model = load(write_tiny_model(tmp_path, heads=4))
    engine = VllmEngine(
        read_model(tmp_path),
        dtype="float32",
        max_model_len=128,
        max_num_seqs=8,
        tensor_parallel_size=2,
        gpu_memory_utilization=0.5,
        enforce_eager=False,
        kv_cache_bytes=32 << 20,
    )
    try:
        for number in range(2):
            weights = snapshot(perturbed(model, seed=number), number)
            # First memory of any kind, then memory as a receiver fills it, which is not copied.
            buffer = staging.staged(weights.buffer) if number else weights.buffer
            engine.load_weights(weights.manifest, buffer, recompute_kv=False)
            assert mapping_workers() == []
            assert staging.reclaim(buffer) is bool(number), "no worker keeps the copy"
            prompts = {"0": PROMPT, "1": PROMPT, "2": LONG_PROMPT, "3": LONG_PROMPT}
            for seed, (sample_id, prompt) in enumerate(prompts.items()):
                engine.add(
                    SampleRequest(
                        sample_id=sample_id, prompt_token_ids=prompt, seed=seed, temperature=1.0, max_tokens=20
                    )
                )
            while engine.running:
                for sample in engine.step():
                    expected = logprobs(model, prompts[sample.sample_id], sample.token_ids.tolist())
                    np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)
                    assert [span.version.number for span in sample.spans] == [number]
    finally:
        engine.close()


def mapping_workers() -> list[int]:
    """Workers that have a staged copy mapped."""
    workers = [child.pid for child in multiprocessing.active_children()]
    assert len(workers) >= 2
    return [pid for pid in workers if pid and "sluice-weights" in Path(f"/proc/{pid}/maps").read_text()]
