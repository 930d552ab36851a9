"""One version's weights as one immutable buffer: packed once by the learner, read by every sender thread.

Knows bytes, not tensors: numpy has no bfloat16, and nothing here computes with weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import Layout, Manifest, TensorSpec, new_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """A manifest and the bytes that the manifest describes."""

    manifest: Manifest
    buffer: np.ndarray = field(repr=False)
    """uint8[total_bytes], read-only."""

    def __post_init__(self) -> None:
        assert self.buffer.dtype == np.uint8
        assert self.buffer.shape == (self.manifest.total_bytes,)
        self.buffer.setflags(write=False)

    def tensors(self) -> Iterator[tuple[TensorSpec, np.ndarray]]:
        """Every tensor's spec and its bytes, uint8[size_bytes], a read-only view."""
        return tensor_views(self.manifest, self.buffer)


class Packer:
    """Fills the buffer of one version. Use once: `put` every tensor, in any order, or fill its `room`; then `seal`."""

    def __init__(self, layout: Layout, buffer: np.ndarray | None = None, *, digest_threads: int = 1) -> None:
        """`buffer`: uint8[total_bytes] to fill, whose gaps between tensors are zero; without one a new one is made.
        `digest_threads`: threads that digest; blake3.AUTO takes all cores. The digest does not depend on them."""
        self._layout, self._digest_threads = layout, digest_threads
        self._buffer = np.zeros(layout.total_bytes, np.uint8) if buffer is None else buffer
        assert self._buffer.shape == (layout.total_bytes,)
        self._missing = {spec.name: spec for spec in layout.tensors}

    def put(self, name: str, data: np.ndarray) -> None:
        """Copies one contiguous tensor of any numpy dtype. Raises ValueError for a wrong, repeated or resized tensor."""
        spec = self._spec(name)
        if data.nbytes != spec.size_bytes:
            raise ValueError(
                f"{name}: must have {spec.size_bytes} bytes ({spec.dtype} {spec.shape}), got {data.nbytes}"
            )
        room = self.room(name)
        if spec.size_bytes:
            room[:] = data.reshape(-1).view(np.uint8)

    def room(self, name: str) -> np.ndarray:
        """uint8[size_bytes]: the place of a tensor, to be filled whole before `seal` instead of a `put`."""
        spec = self._spec(name)
        del self._missing[name]
        return self._buffer[spec.offset_bytes : spec.offset_bytes + spec.size_bytes]

    def _spec(self, name: str) -> TensorSpec:
        spec = self._missing.get(name)
        if spec is None:
            raise ValueError(f"{name}: not in the layout, or put twice")
        return spec

    def seal(self, version: PolicyVersion) -> Snapshot:
        """Digests the buffer and hands the buffer over. Raises ValueError when a tensor is missing."""
        if self._missing:
            raise ValueError(f"{version}: {len(self._missing)} tensors were never put, first {min(self._missing)}")
        hasher = new_digest(self._layout.tensors, threads=self._digest_threads)
        hasher.update(self._buffer.data)
        manifest = Manifest(
            version=version,
            tensors=self._layout.tensors,
            total_bytes=self._layout.total_bytes,
            bucket_bytes=self._layout.bucket_bytes,
            digest=hasher.hexdigest(),
        )
        return Snapshot(manifest=manifest, buffer=self._buffer)


def tensor_views(manifest: Manifest, buffer: np.ndarray) -> Iterator[tuple[TensorSpec, np.ndarray]]:
    """Every tensor's spec and the tensor's bytes within `buffer` (uint8[total_bytes]), without copying."""
    for spec in manifest.tensors:
        yield spec, buffer[spec.offset_bytes : spec.offset_bytes + spec.size_bytes]
