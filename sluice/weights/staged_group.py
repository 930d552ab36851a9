"""A pair whose operations run in device memory: two slots, a stream of their own, and no wait that a device does not answer.

The way of a bucket: host memory -> slot -> wire -> slot -> host memory. A slot is a piece of device memory and, where the
bucket's own memory is not page-locked, a page-locked piece of host memory, through which a device copies without waiting. While
one slot is on the wire the other is filled or emptied.

 who waits       for what                                 unblocked by
 a pair's thread an operation, by asking now and then     the peer, the peer's death as the backend tells it, the limit
Nobody else waits: copies and operations are in the pair's own stream, behind nothing that the device computes, and no call
blocks in the device. At the limit the communicator is aborted, which ends its kernels, and the pair is never used again.

On a CPU the same lines run over gloo, whose operations are asked in the same way (accelerator.Lane).
"""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from torch.distributed import BroadcastOptions

from sluice.accelerator import Lane, host_memory
from sluice.errors import TransferError
from sluice.weights.flights import DEPTH
from sluice.weights.memory import as_tensor

FIRST_PAUSE_S, LONGEST_PAUSE_S = 50e-6, 1e-3
"""Between two questions whether an operation is over: doubled from the one to the other. A bucket takes milliseconds."""


@dataclass(slots=True)
class _Slot:
    """Room for one bucket; grows, and never shrinks before it is dropped."""

    device: torch.Tensor
    host: torch.Tensor | None = field(default=None, repr=False)

    def staging(self, size_bytes: int, device: torch.device) -> torch.Tensor:
        if self.host is None or self.host.numel() < size_bytes:
            self.host = host_memory(size_bytes, device=device)
        return self.host[:size_bytes]


class StagedGroup:
    """TransferGroup of backends.py, for one thread at a time."""

    def __init__(self, group: Any, *, epoch: str, rank: int, device: torch.device, limit_s: float) -> None:
        """`group`: a ProcessGroupNCCL, or a ProcessGroupGloo with `device` cpu, whose stubs lack their operations.
        `limit_s`: of an operation, from the end of the operation before it."""
        self._group, self._epoch, self._rank = group, epoch, rank
        self._limit_s = limit_s
        self._lane = Lane(device)
        self._slots: list[_Slot] = []
        self._next = 0
        self.broken = False

    def start(self, data: np.ndarray, *, root: int = 0) -> "_StagedFlight":
        """Begins an operation. Raises TransferError. No more than DEPTH may be under way."""
        self._raise_if_broken()
        try:
            with self._lane.within():
                slot = self._slot(data.nbytes)
                bucket = slot.device[: data.nbytes]
                if self._rank == root:
                    self._fill(slot, bucket, as_tensor(data))
                work = self._group.broadcast([bucket], broadcast_options(self._limit_s, root))
        except RuntimeError as error:  # torch's distributed and accelerator errors share no narrower base
            raise self._given_up(str(error)) from error
        into = None if self._rank == root else as_tensor(data)
        return _StagedFlight(self, work, slot, bucket, into)

    def broadcast(self, data: np.ndarray, *, root: int = 0) -> None:
        """TransferGroup.broadcast."""
        self.start(data, root=root).wait()

    def connect(self, *, limit_s: float) -> None:
        """The first operation, within a limit of its own: with it NCCL makes its communicator. Raises TransferError."""
        self._raise_if_broken()
        byte = np.zeros(1, np.uint8)
        usual, self._limit_s = self._limit_s, limit_s
        try:
            self.broadcast(byte)
        finally:
            self._limit_s = usual

    def rest(self) -> None:
        """TransferGroup.rest: gives the slots back."""
        self._slots.clear()

    def close(self) -> None:
        """TransferGroup.close: aborts the communicator and gives the slots back."""
        self._give_up()
        self.rest()

    # --- of _StagedFlight -----------------------------------------------------------------------------------------

    def land(self, flight: "_StagedFlight") -> None:
        """Waits for an operation, and empties its slot where this end receives. Raises TransferError."""
        self._raise_if_broken()
        started = time.monotonic()
        try:
            self._until(flight.work.is_completed, started)
            with self._lane.within():  # torch has the current stream wait, which must not be training's
                flight.work.wait()  # is over, so it only raises what the operation failed with
            if flight.into is not None:
                self._empty(flight, started)
        except RuntimeError as error:
            raise self._given_up(str(error)) from error

    def _fill(self, slot: _Slot, bucket: torch.Tensor, data: torch.Tensor) -> None:
        if bucket.is_cuda and not data.is_pinned():  # CUDA only
            data = slot.staging(data.numel(), bucket.device).copy_(data)
        bucket.copy_(data, non_blocking=True)

    def _empty(self, flight: "_StagedFlight", started: float) -> None:
        assert flight.into is not None
        bucket, into = flight.bucket, flight.into
        staged = bucket.is_cuda and not into.is_pinned()  # CUDA only
        host = flight.slot.staging(into.numel(), bucket.device) if staged else into
        with self._lane.within():
            host.copy_(bucket, non_blocking=True)
        self._until(self._lane.mark().query, started)
        if staged:
            into.copy_(host)

    def _until(self, over: Callable[[], bool], started: float) -> None:
        pause_s = FIRST_PAUSE_S
        while not over():
            if time.monotonic() - started > self._limit_s:
                raise self._given_up(f"an operation was not over after {self._limit_s:g} s")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _slot(self, size_bytes: int) -> _Slot:
        self._next = (self._next + 1) % DEPTH
        if len(self._slots) < DEPTH:
            self._slots = [_Slot(self._lane.empty(0)) for _ in range(DEPTH)]
        slot = self._slots[self._next]
        if slot.device.numel() < size_bytes:
            slot.device = self._lane.empty(size_bytes)
        return slot

    def _raise_if_broken(self) -> None:
        if self.broken:
            raise TransferError(f"epoch {self._epoch}: has failed before")

    def _given_up(self, reason: str) -> TransferError:
        self._give_up()
        return TransferError(f"epoch {self._epoch}: {reason}")

    def _give_up(self) -> None:
        if not self.broken:
            self.broken = True
            with contextlib.suppress(
                RuntimeError
            ):  # the communicator is aborted in any case; torch only says that it took long
                self._group.abort()


@dataclass(frozen=True, slots=True)
class _StagedFlight:
    """Flight of flights.py."""

    group: StagedGroup = field(repr=False)
    work: Any
    slot: _Slot
    bucket: torch.Tensor
    into: torch.Tensor | None
    """Where the bucket goes, at the end that receives."""

    def wait(self) -> None:
        self.group.land(self)


def broadcast_options(limit_s: float, root: int) -> BroadcastOptions:
    """Of one operation with its own limit."""
    options = BroadcastOptions()
    options.rootRank = root
    options.timeout = timedelta(seconds=limit_s)
    return options
