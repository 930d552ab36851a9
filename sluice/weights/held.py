"""The version that a rollout holds as plain bytes on the host: the base of the deltas that it can take.

The bytes are those that were verified and handed to the engine, and never change while they are held: a delta is applied to a
copy, which takes their place once its digest is the manifest's and the engine has it.
"""

import numpy as np

from sluice.errors import NotReady
from sluice.weights import delta
from sluice.weights.manifest import Manifest, new_digest
from sluice.weights.payload import Payload


class HeldVersion:
    """Not thread-safe: the receiver's lock guards it."""

    def __init__(self, *, keeps: bool, threads: int = 1) -> None:
        """Without `keeps` nothing is held, and every delta is refused. `threads` apply a delta."""
        self._keeps = keeps
        self.threads = threads
        self._manifest: Manifest | None = None
        self._buffer: np.ndarray | None = None

    def base_of(self, payload: Payload) -> np.ndarray | None:
        """The bytes that a delta begins with, None for a dense payload. Raises NotReady unless exactly the base is held."""
        if payload.encoding == "dense":
            return None
        held = self._manifest
        if held is None or (held.version, held.digest) != (payload.base, payload.base_digest):
            has = "no version" if held is None else f"{held.version} with digest {held.digest[:16]}..."
            raise NotReady(
                f"delta: its base is {payload.base} with digest {payload.base_digest[:16]}..., and this rollout holds {has}; "
                "send the whole version"
            )
        return self._buffer

    def replace(self, manifest: Manifest, buffer: np.ndarray) -> np.ndarray | None:
        """Holds another version's verified bytes, uint8[total_bytes]; returns memory that nobody uses any more."""
        if not self._keeps:
            return buffer
        free = self._buffer
        self._manifest, self._buffer = manifest, buffer
        return free


def rebuilt(base: np.ndarray, chain: np.ndarray, manifest: Manifest, *, into: np.ndarray, threads: int) -> str:
    """Fills `into`, uint8[total_bytes], with the base as changed by a chain of deltas, uint8[n]; returns the digest of
    the result, hex. Raises TransferError for a chain that is damaged or not of these tensors."""
    np.copyto(into, base)
    delta.apply(chain.data, into, manifest.tensors, threads=threads)
    hasher = new_digest(manifest.tensors, threads=threads)
    hasher.update(into.data)
    return hasher.hexdigest()
