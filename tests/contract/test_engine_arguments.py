"""What vLLM makes of the arguments for CUDA, as far as a CPU can tell."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


def test_a_large_gpu_gets_large_steps_and_a_given_cache_is_not_measured(
    model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.engine.arg_utils import EngineArgs, current_platform
    from vllm.usage.usage_lib import UsageContext

    from services.rollout.adapters.vllm_arguments import cpu_arguments, cuda_arguments

    for name, value in (
        ("get_device_total_memory", 141 << 30),
        ("get_device_name", "NVIDIA H200"),
        ("is_cpu", False),
    ):
        monkeypatch.setattr(current_platform, name, lambda *_, value=value: value)
    tokens, _ = EngineArgs.get_batch_defaults(1)
    assert tokens[UsageContext.LLM_CLASS] == 16_384
    assert UsageContext.ENGINE_CONTEXT not in tokens  # vLLM's fallback for it is 2,048
    given = cuda_arguments(gpu_memory_utilization=0.85, enforce_eager=True, kv_cache_bytes=1 << 30)
    args = EngineArgs(model=str(model_path), **given)
    assert (args.kv_cache_memory_bytes, args.gpu_memory_utilization, args.enforce_eager) == (1 << 30, 0.01, True)
    measured = cuda_arguments(gpu_memory_utilization=0.85, enforce_eager=False, kv_cache_bytes=None)
    assert (measured["kv_cache_memory_bytes"], measured["gpu_memory_utilization"]) == (None, 0.85)
    assert cpu_arguments(100, None)["kv_cache_memory_bytes"] == 128 << 20
    assert cpu_arguments(100, 5)["kv_cache_memory_bytes"] == 5
