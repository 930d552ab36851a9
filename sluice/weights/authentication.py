"""How the two ends of a transfer know each other: by the secret of the epoch, which came over authenticated gRPC.

The secret itself never crosses the store (sealed_store.py) or the group. In the group each end answers the other's challenge,
before a byte of weights is sent: a stranger that was quicker to connect than the receiver gets nothing.

Nothing here is encrypted, and whoever can change packets on the way can take over a connection after the challenge.
"""

import hashlib
import hmac
import secrets
from typing import Protocol

import numpy as np

from sluice.errors import TransferError

CODE_BYTES = hashlib.sha256().digest_size
_NONCE_BYTES = 32


class Exchange(Protocol):
    """A joined group of two."""

    def broadcast(self, data: np.ndarray, *, root: int) -> None:
        """Sends (as rank `root`) or fills (as the other) uint8[n]. Raises TransferError."""
        ...


def prove(group: Exchange, *, secret: str, epoch: str, rank: int) -> None:
    """Shows the other end that this end knows the secret, and has the other end show the same. Raises TransferError.

    Both ends draw a nonce; a proof is a code over rank, epoch and both nonces, so no proof fits another end, epoch or time.
    """
    nonces = [_told(group, secrets.token_bytes(_NONCE_BYTES), root=root, rank=rank) for root in (0, 1)]
    proofs = [code(secret, "proof", str(root).encode(), epoch.encode(), *nonces) for root in (0, 1)]
    for root in (1, 0):  # the receiver first: whoever answers no challenge learns no proof of the learner's
        shown = _told(group, proofs[root], root=root, rank=rank)
        if not hmac.compare_digest(shown, proofs[root]):
            raise TransferError(
                f"epoch {epoch}: the process at the other end does not know the epoch's secret; no weights were sent. Is the "
                "port of weight transfers open to strangers (docs/security.md)?"
            )


def code(secret: str, purpose: str, *parts: bytes) -> bytes:
    """HMAC-SHA256 over parts with their lengths, so that no two lists of parts are one text."""
    keyed = hmac.new(secret.encode(), purpose.encode(), hashlib.sha256)
    for part in parts:
        keyed.update(len(part).to_bytes(8, "big") + part)
    return keyed.digest()


def _told(group: Exchange, mine: bytes, *, root: int, rank: int) -> bytes:
    """What rank `root` says: `mine`, if this end is the one."""
    data = np.frombuffer(mine, np.uint8).copy() if rank == root else np.zeros(len(mine), np.uint8)
    group.broadcast(data, root=root)
    return data.tobytes()
