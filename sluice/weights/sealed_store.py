"""The learner's store as the two ends of one transfer see it: names are keyed hashes, values carry a code (HMAC-SHA256).

A stranger on the store's port, which asks nobody for credentials, can read addresses and spoil an epoch, and can neither set an
address nor derive the secret.
"""

import hmac
from collections.abc import Sequence
from datetime import timedelta

from torch._C._distributed_c10d import Store

from sluice.errors import TransferError
from sluice.weights.authentication import CODE_BYTES, code


class SealedStore(Store):
    """Another store under keyed names, with values whose code is checked. Used by torch's process groups."""

    def __init__(self, store: Store, *, secret: str, epoch: str) -> None:
        super().__init__()
        self._store, self._secret, self._epoch = store, secret, epoch
        self._known: set[str] = set()

    def set(self, key: str, value: str | bytes) -> None:
        held = value.encode() if isinstance(value, str) else bytes(value)
        name = self._name(key)
        self._store.set(name, code(self._secret, "value", name.encode(), held) + held)  # type: ignore[arg-type]

    def get(self, key: str) -> bytes:
        """Waits for the value. Raises TransferError for one that was not set with the secret."""
        name = self._name(key)
        found = self._store.get(name)
        shown, value = found[:CODE_BYTES], found[CODE_BYTES:]
        if not hmac.compare_digest(shown, code(self._secret, "value", name.encode(), value)):
            raise TransferError(f"epoch {self._epoch}: a stranger has changed an address in the store of transfers")
        return value

    def add(self, key: str, value: int) -> int:
        return self._store.add(self._name(key), value)

    def check(self, keys: Sequence[str]) -> bool:
        return self._store.check([self._name(key) for key in keys])

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        names = [self._name(key) for key in keys]
        if timeout is None:
            self._store.wait(names)
        else:
            self._store.wait(names, timeout)

    def delete_key(self, key: str) -> bool:
        return self._store.delete_key(self._name(key))

    def clone(self) -> "SealedStore":
        return SealedStore(self._store.clone(), secret=self._secret, epoch=self._epoch)  # type: ignore[attr-defined]

    def forget(self) -> None:
        """Removes everything that either end has set; both ends must have met, or have given up."""
        for name in self._known:
            self._store.delete_key(name)

    def _name(self, key: str) -> str:
        name = code(self._secret, "name", self._epoch.encode(), key.encode()).hex()
        self._known.add(name)
        return name
