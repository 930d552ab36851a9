"""What differs between a CUDA device and a CPU, in one place: identity, memory, streams.

torch.cuda and torch.cpu have the same streams and events, so what uses them here runs on a CPU line by line; on a CPU a stream
is no more than the order of calls. The lines that only CUDA reaches say so and have tests marked `gpu`, which were not run.
"""

from types import ModuleType
from typing import Literal

import numpy as np
import torch
from torch import Tensor

CPU = "cpu"
"""The identity of a process that has no CUDA device."""


def identity() -> str:
    """The UUID of the CUDA device that this process computes on, or "cpu". Equal for two processes on one device."""
    if not torch.cuda.is_available():
        return CPU
    return f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"  # CUDA only


def backend_between(mine: str, theirs: str) -> Literal["gloo", "nccl"]:
    """The backend for a pair of processes by their `identity`, of which an empty one was not told.

    NCCL is for two different CUDA devices: it refuses two ranks on one device ("Duplicate GPU detected"). gloo goes through
    host memory and works for every pair.
    """
    return "nccl" if mine != theirs and not {mine, theirs} & {CPU, ""} else "gloo"


def memory_bytes(device: torch.device) -> tuple[int, int] | None:
    """Free bytes and all bytes of a CUDA device; None for a CPU."""
    return torch.cuda.mem_get_info(device) if device.type == "cuda" else None


def host_memory(size_bytes: int, *, device: torch.device) -> Tensor:
    """uint8[size_bytes] zeros on the host; page-locked where `device` is a CUDA device, which then copies without waiting."""
    return torch.zeros(size_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")


def settle(device: torch.device) -> None:
    """Waits until the device has done what this thread's stream was given; on a CPU it always has."""
    reached = _streams(device).Event()
    reached.record(_streams(device).current_stream())
    reached.synchronize()


class SideCopies:
    """Copies from a device to the host in a stream of their own, beside what the device computes meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self._streams = _streams(device)
        self._stream = self._streams.Stream()

    def copy(self, into: np.ndarray, source: Tensor) -> None:
        """Begins to copy a tensor of any dtype into uint8[n] host memory of `host_memory`, which is filled after `finish`.

        The tensor may be dropped at once; what is computed into it was given to this thread's stream before.
        """
        flat = source.detach().contiguous().reshape(-1).view(torch.uint8)
        self._stream.wait_stream(self._streams.current_stream())
        with self._streams.stream(self._stream):
            torch.from_numpy(into).copy_(flat, non_blocking=True)
        if flat.is_cuda:
            flat.record_stream(self._stream)  # CUDA only: its memory is not given away before the copy is done

    def finish(self) -> None:
        """Waits until every copy is done."""
        done = self._streams.Event()
        done.record(self._stream)
        done.synchronize()


def _streams(device: torch.device) -> ModuleType:
    return torch.cuda if device.type == "cuda" else torch.cpu
