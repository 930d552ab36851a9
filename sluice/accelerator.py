"""What differs between a CUDA device and a CPU, in one place: identity, memory, streams.

torch.cuda and torch.cpu have the same streams and events, so what uses them here runs on a CPU line by line; on a CPU a stream
is no more than the order of calls. The lines that only CUDA reaches say so and have tests marked `gpu`, which were not run.
"""

import contextlib
from collections import deque
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Literal

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


def model_of_gpu() -> tuple[str, int] | None:
    """The name and the bytes of memory of the CUDA device that this process computes on; None without one."""
    if not torch.cuda.is_available():
        return None
    facts = torch.cuda.get_device_properties(torch.cuda.current_device())  # CUDA only
    return facts.name, facts.total_memory


def backend_between(mine: str, theirs: str) -> Literal["gloo", "nccl"]:
    """The backend for a pair of processes by their `identity`, where an empty identity is one that was not told.

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


class Lane:
    """A stream of one user's own: what is given to it queues neither behind nor before what the device computes.

    torch hands out its 32 streams of a device in turn, so with more users than streams two users share a stream.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._streams = device, _streams(device)
        # CUDA only: a thread's current device is the first one until the thread says otherwise.
        self._stream = self._streams.Stream(device) if device.type == "cuda" else self._streams.Stream()

    @contextlib.contextmanager
    def within(self) -> Iterator[None]:
        """What this thread gives to the device meanwhile goes into the lane."""
        with self._streams.stream(self._stream):
            yield

    def empty(self, size_bytes: int) -> Tensor:
        """uint8[size_bytes] of the device's memory, for use in this lane."""
        with self.within():
            return torch.empty(size_bytes, dtype=torch.uint8, device=self._device)

    def mark(self) -> Any:
        """An event whose `query` says whether all that the lane was given until now is done; on a CPU it always is."""
        event = self._streams.Event()
        event.record(self._stream)
        return event


COPIES_BYTES = 256 << 20
"""Device memory that tensors on their way to the host may hold at most, but for one tensor; chosen: 5 to 10 ms of a link."""


class SideCopies:
    """Copies from a device to the host in a stream of their own, beside what the device computes meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self._streams = _streams(device)
        self._stream = self._streams.Stream()
        self._under_way: deque[tuple[Any, int]] = deque()
        """Events behind copies, oldest first, with the bytes of each copy."""

    def copy(self, into: np.ndarray, source: Tensor) -> None:
        """Begins to copy a tensor of any dtype into uint8[n] host memory of `host_memory`, which is filled after `finish`.

        The tensor may be dropped at once; what is computed into it was given to this thread's stream before. Waits for
        older copies while more than COPIES_BYTES are under way.
        """
        flat = source.detach().contiguous().reshape(-1).view(torch.uint8)
        self._stream.wait_stream(self._streams.current_stream())
        with self._streams.stream(self._stream):
            torch.from_numpy(into).copy_(flat, non_blocking=True)
        if flat.is_cuda:
            flat.record_stream(self._stream)  # CUDA only: its memory is not given away before the copy is done
        done = self._streams.Event()
        done.record(self._stream)
        self._under_way.append((done, flat.numel()))
        while len(self._under_way) > 1 and sum(size for _, size in self._under_way) > COPIES_BYTES:
            self._under_way.popleft()[0].synchronize()

    def finish(self) -> None:
        """Waits until every copy is done."""
        while self._under_way:
            self._under_way.popleft()[0].synchronize()


def _streams(device: torch.device) -> ModuleType:
    return torch.cuda if device.type == "cuda" else torch.cpu
