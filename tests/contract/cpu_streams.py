"""CUDA's streams and events on a CPU, where what was asked for is done at once.

vLLM's scheduling beside its steps then runs for real, with its scheduler, its queue of batches and its model; only the overlap
in time is missing.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch


class _Event(torch.cpu.Event):
    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()


@contextlib.contextmanager
def streams_of_a_cpu() -> Iterator[None]:
    """Replaces torch.cuda's streams and events, as vLLM's own CPU model runner does while it is built."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Event", _Event)
        patch.setattr(torch.cuda, "Stream", torch.cpu.Stream)
        patch.setattr(torch.cuda, "current_stream", torch.cpu.current_stream)
        patch.setattr(torch.cuda, "stream", torch.cpu.stream)
        yield
