"""The description of a packed snapshot: its tensors, their places in the buffer, and the digest of the bytes.

Pure: names, shapes and bytes. Tensors lie sorted by name, each at a 64-byte aligned offset; the gaps are zero and are
part of the digest. A tied tensor appears once, under the name that the learner chose for it.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

from blake3 import blake3

from sluice.errors import TransferError
from sluice.policy_version import PolicyVersion

ALIGN_BYTES = 64
"""A cache line and the widest vector register, so that a view of any dtype can be used in place."""

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""The dtypes a snapshot may hold, with bytes an element."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """The place of one tensor in the packed buffer."""

    name: str
    """Hugging Face parameter name."""
    dtype: str
    """A key of DTYPE_BYTES."""
    shape: tuple[int, ...]
    offset_bytes: int
    """Aligned to ALIGN_BYTES."""
    size_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The tensors of a model and their places, the same for all of its versions."""

    tensors: tuple[TensorSpec, ...]
    """Sorted by name."""
    total_bytes: int
    bucket_bytes: int

    @property
    def fingerprint(self) -> str:
        """blake3 of names, dtypes and shapes, hex: equal on all learner ranks before the first gather."""
        return new_digest(self.tensors).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """Describes the packed snapshot of one version; mirrors the proto `WeightManifest`."""

    version: PolicyVersion
    tensors: tuple[TensorSpec, ...]
    """Sorted by name."""
    total_bytes: int
    bucket_bytes: int
    """Length of every transfer bucket but the last."""
    digest: str
    """blake3 of names, dtypes, shapes and the packed bytes, hex. The version is not part of the digest."""


def plan(named: Sequence[tuple[str, str, Sequence[int]]], *, bucket_bytes: int) -> Layout:
    """Places `(name, dtype, shape)` tensors. Raises ValueError on a duplicate name, an unknown dtype or no tensor."""
    if bucket_bytes <= 0:
        raise ValueError(f"bucket_bytes: must be > 0, got {bucket_bytes}")
    if not named:
        raise ValueError("a snapshot needs at least one tensor")
    tensors: list[TensorSpec] = []
    end = 0
    for name, dtype, shape in sorted(named, key=lambda entry: entry[0]):
        if tensors and tensors[-1].name == name:
            raise ValueError(f"{name}: appears twice; send a tied tensor once, under one name")
        offset = _align(end)
        spec = TensorSpec(
            name=name, dtype=dtype, shape=tuple(shape), offset_bytes=offset, size_bytes=_size_bytes(name, dtype, shape)
        )
        tensors.append(spec)
        end = offset + spec.size_bytes
    return Layout(tensors=tuple(tensors), total_bytes=end, bucket_bytes=bucket_bytes)


def check(manifest: Manifest) -> None:
    """Raises TransferError unless `plan` would place the tensors in the same way: a manifest from a wire is not trusted."""
    named = [(spec.name, spec.dtype, spec.shape) for spec in manifest.tensors]
    try:
        layout = plan(named, bucket_bytes=manifest.bucket_bytes)
    except ValueError as error:
        raise TransferError(f"manifest of {manifest.version}: {error}") from error
    if (layout.tensors, layout.total_bytes) != (manifest.tensors, manifest.total_bytes):
        raise TransferError(f"manifest of {manifest.version}: offsets or sizes do not follow from names and shapes")


def buckets(total_bytes: int, bucket_bytes: int) -> Iterator[slice]:
    """Cuts [0, total_bytes) into slices of `bucket_bytes`; the last slice may be shorter."""
    for start in range(0, total_bytes, bucket_bytes):
        yield slice(start, min(start + bucket_bytes, total_bytes))


def new_digest(tensors: Sequence[TensorSpec], *, threads: int = 1) -> blake3:
    """A hasher that has hashed the header; the caller feeds the packed buffer, in order and in pieces of any length.

    `threads` compute it, blake3.AUTO for as many as there are cores.
    """
    header = json.dumps([[spec.name, spec.dtype, list(spec.shape)] for spec in tensors], separators=(",", ":"))
    encoded = header.encode()
    return blake3(len(encoded).to_bytes(8, "little") + encoded, max_threads=threads)


def _size_bytes(name: str, dtype: str, shape: Sequence[int]) -> int:
    if dtype not in DTYPE_BYTES:
        raise ValueError(f"{name}: dtype must be one of {', '.join(DTYPE_BYTES)}, got {dtype}")
    if any(length < 0 for length in shape):
        raise ValueError(f"{name}: shape must be >= 0, got {tuple(shape)}")
    return prod(shape) * DTYPE_BYTES[dtype]


def _align(offset_bytes: int) -> int:
    return -(-offset_bytes // ALIGN_BYTES) * ALIGN_BYTES
