"""Memory of snapshots is used again when nobody has the snapshot any more, with the same bytes and digest."""

import numpy as np
import torch

from services.learner.snapshot.host_buffers import HostBuffers
from sluice.accelerator import SideCopies, host_memory, memory_bytes, settle
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot

CPU = torch.device("cpu")
LAYOUT = plan([("a", "bfloat16", (3, 5)), ("b", "float32", (7,))], bucket_bytes=64)
TENSORS = {"a": torch.arange(15).bfloat16().reshape(3, 5), "b": torch.linspace(0, 1, 7)}


def _packed(buffer: np.ndarray | None, number: int) -> Snapshot:
    """A version whose bytes come over the side copies, from a strided tensor for one."""
    packer, copies = Packer(LAYOUT, buffer, digest_threads=1 if buffer is None else 2), SideCopies(CPU)
    for name, tensor in TENSORS.items():
        source = (tensor + number).to(tensor.dtype)
        copies.copy(packer.room(name), source.t().contiguous().t() if source.ndim == 2 else source)
    copies.finish()
    return packer.seal(PolicyVersion(lineage="a", number=number))


def _address(buffer: np.ndarray) -> int:
    return buffer.ctypes.data


def test_two_buffers_take_turns_and_a_reader_keeps_what_it_reads() -> None:
    buffers = HostBuffers(64, device=CPU)
    first, second = buffers.take(), buffers.take()
    places = {_address(first), _address(second)}
    assert len(places) == 2
    third = buffers.take()  # both are in use: ordinary memory, which is not kept
    assert _address(third) not in places
    read = first[8:16]
    del first, third
    assert _address(buffers.take()) not in places, "a slice still reads the first one"
    del read
    again = buffers.take()
    assert _address(again) in places - {_address(second)}


def test_a_version_in_used_memory_has_the_bytes_and_the_digest_of_one_in_fresh_memory() -> None:
    buffers = HostBuffers(LAYOUT.total_bytes, device=CPU)
    places = []
    for number in range(4):
        ours, plain = _packed(buffers.take(), number), _packed(None, number)
        assert ours.manifest == plain.manifest
        assert ours.buffer.tobytes() == plain.buffer.tobytes()
        assert not ours.buffer.flags.writeable
        places.append(_address(ours.buffer))
        del ours
    assert len(set(places)) == 1


def test_a_cpu_is_the_twin_that_has_nothing_to_wait_for() -> None:
    settle(CPU)
    assert memory_bytes(CPU) is None
    assert not host_memory(8, device=CPU).is_pinned()
    assert not host_memory(8, device=CPU).any()
