"""What vLLM and torch read from the environment; set before either is imported."""

import os

_VLLM = {
    # The engine core lives in this process, stepped by us: one process instead of three on a CPU.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    # Workers of tensor parallelism on a CPU are not pinned: vLLM wants a NUMA node for each.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


def set_environment(*, threads: int) -> None:
    """Sets this process's environment for an engine that computes with `threads` threads where it runs on a CPU."""
    os.environ |= _VLLM | {"OMP_NUM_THREADS": str(threads)}
    import torch  # not before its number of threads is set

    if not torch.cuda.is_available():
        # Only the logprobs operator would be compiled: 14 s of a cold start, and it needs a C++ compiler.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"


def device_name() -> str:
    """What this process computes on, as part of an engine's name: numbers of two kinds differ more than those of one."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
