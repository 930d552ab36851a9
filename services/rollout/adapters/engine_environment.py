"""The environment variables of vLLM and torch; set before the import of either."""

import os

from sluice.addresses import loopback_interface
from sluice.socket_folder import socket_folder

_VLLM = {
    # The engine core runs in this process, where Sluice steps it: one process instead of three on a CPU.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    # Tensor-parallel workers on a CPU are not pinned to cores: vLLM wants a NUMA node for each worker.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}

_ZMQ_NAME_BYTES = 64
"""A UUID and some room: the names of vLLM's sockets below VLLM_RPC_BASE_PATH."""


def set_environment(*, threads: int) -> None:
    """Sets this process's environment for an engine; on a CPU the engine computes with `threads` threads."""
    os.environ |= _VLLM | {"OMP_NUM_THREADS": str(threads)}
    # A rollout's processes share one machine, whose own name need not resolve and whose TMPDIR may be long.
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback_interface())
    if folder := socket_folder(room_bytes=_ZMQ_NAME_BYTES):
        os.environ.setdefault("VLLM_RPC_BASE_PATH", folder)
    import torch  # imported after the number of threads is set

    if not torch.cuda.is_available():
        # Only the logprobs operator would be compiled, which takes 14 s of a cold start and needs a C++ compiler.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"


def device_name() -> str:
    """The device's name for the engine's name: engines on devices of different kinds differ more in their numbers."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
