"""What travels for one version to one receiver: an encoding, and bytes in buckets with a digest each.

Pure. The learner makes payloads; a payload reaches a receiver over authenticated gRPC beside the version's manifest. So a
receiver checks every bucket on arrival, whoever sends the bucket, and may pass the bucket on before the next one arrives.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from blake3 import blake3

from sluice.errors import TransferError
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import Manifest, buckets

Encoding = Literal["dense", "delta"]

DIGEST_BYTES = 32
"""Length of a bucket's digest."""


@dataclass(frozen=True, kw_only=True)
class Payload:
    """Describes the bytes that travel; mirrors the proto `WeightPayload`."""

    encoding: Encoding
    """dense: the packed snapshot. delta: what changed since `base`."""
    total_bytes: int
    bucket_bytes: int
    """Length of every bucket but the last."""
    bucket_digests: tuple[bytes, ...]
    """BLAKE3 of every bucket, in order."""
    base: PolicyVersion | None = None
    """For a delta: the version that the receiver has to hold."""
    base_digest: str = ""
    """For a delta: the digest of that version."""

    @functools.cached_property
    def id(self) -> str:
        """BLAKE3 of everything above, hex: payloads of one id are the same bytes."""
        base = f"{self.base}:{self.base_digest}" if self.base else ""
        facts = f"{self.encoding}:{self.total_bytes}:{self.bucket_bytes}:{base}:"
        return blake3(facts.encode() + b"".join(self.bucket_digests)).hexdigest()

    def bounds(self, bucket: int) -> slice:
        """The place of a bucket within the payload."""
        start = bucket * self.bucket_bytes
        return slice(start, min(start + self.bucket_bytes, self.total_bytes))


def dense(manifest: Manifest, buffer: np.ndarray, *, threads: int = 1) -> Payload:
    """The payload of a packed snapshot, uint8[total_bytes], which `threads` digest (blake3.AUTO: all cores)."""
    return Payload(
        encoding="dense",
        total_bytes=manifest.total_bytes,
        bucket_bytes=manifest.bucket_bytes,
        bucket_digests=digests_of(buffer, manifest.bucket_bytes, threads=threads),
    )


def digests_of(data: np.ndarray, bucket_bytes: int, *, threads: int = 1) -> tuple[bytes, ...]:
    """The digest of every bucket of uint8[n]."""
    return tuple(digest_of(data[part], threads=threads) for part in buckets(data.size, bucket_bytes))


def digest_of(bucket: np.ndarray, *, threads: int = 1) -> bytes:
    """The digest of one bucket, uint8[n]."""
    return blake3(bucket.data, max_threads=threads).digest()


def check(payload: Payload, manifest: Manifest) -> None:
    """Raises TransferError unless the payload can be one of the manifest's version: a payload from a wire is not trusted."""
    what = f"payload of {manifest.version}"
    if payload.encoding not in get_args(Encoding):
        raise TransferError(
            f"{what}: encoding must be one of {', '.join(get_args(Encoding))}, got {payload.encoding!r}"
        )
    if payload.bucket_bytes <= 0:
        raise TransferError(f"{what}: bucket_bytes must be > 0, got {payload.bucket_bytes}")
    if payload.encoding == "dense" and payload.total_bytes != manifest.total_bytes:
        raise TransferError(f"{what}: dense, so {manifest.total_bytes} bytes long, got {payload.total_bytes}")
    if not 0 <= payload.total_bytes <= manifest.total_bytes:
        raise TransferError(f"{what}: a delta is at most {manifest.total_bytes} bytes long, got {payload.total_bytes}")
    if (payload.encoding == "delta") != (payload.base is not None):
        raise TransferError(f"{what}: a delta names its base, and nothing else does")
    _check_digests(payload.bucket_digests, -(-payload.total_bytes // payload.bucket_bytes), what)


def _check_digests(digests: Sequence[bytes], wanted: int, what: str) -> None:
    if len(digests) != wanted or any(len(digest) != DIGEST_BYTES for digest in digests):
        raise TransferError(f"{what}: needs {wanted} digests of {DIGEST_BYTES} bytes, got {len(digests)}")
