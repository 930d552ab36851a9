"""Host memory for snapshots of one layout, used again and again: page-locked where a CUDA device copies into it.

A snapshot's memory comes back when nobody has the snapshot any more: neither the learner, nor a sender, nor an export.
Two buffers are enough while receivers keep up: the newest version's and the next one's; where deltas are made, a third
is made the first time that a step ends before the delta to its version has. Where all are in use, the next version gets
memory of its own, ordinary and not kept, so that no step waits for a receiver.
"""

import weakref
from collections import deque

import numpy as np
import torch
from torch import Tensor

from sluice.accelerator import host_memory


class HostBuffers:
    """Buffers of `size_bytes`. The first use of a buffer finds zeros; a later use finds what the former use has left,
    so that a snapshot of the same layout has to fill the same places and finds zeros in its gaps."""

    def __init__(self, size_bytes: int, *, device: torch.device, kept: int = 2) -> None:
        """At most `kept` buffers are kept."""
        self._size_bytes, self._device, self._kept = size_bytes, device, kept
        self._free: deque[Tensor] = deque()
        """Any thread gives back, at any moment: appending and popping need no lock."""
        self._made = 0

    def take(self) -> np.ndarray:
        """uint8[size_bytes]; the memory comes back by itself when this array and its slices are gone. For one thread."""
        if self._free:
            memory = self._free.pop()
        elif self._made < self._kept:
            self._made += 1
            memory = host_memory(self._size_bytes, device=self._device)
        else:
            return np.zeros(self._size_bytes, np.uint8)
        array = memory.numpy()  # a new array each time; slices of it hold this one, not the tensor
        weakref.finalize(array, self._free.append, memory).atexit = False
        return array
