"""What the learner shows and what is wanted of it, shared by the training thread and the control thread."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sluice.errors import NotReady, SluiceError
from sluice.weights.manifest import PolicyVersion
from sluice.weights.sender import WeightSender
from sluice.weights.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedCheckpoint:
    """A complete checkpoint."""

    version: PolicyVersion
    path: Path


class SharedFront:
    """`Front` of ports.py on one side, what the servicer needs on the other. Thread-safe."""

    def __init__(self, sender: WeightSender, *, world_size: int, backend: Literal["gloo", "nccl"]) -> None:
        self.sender = sender
        self.world_size = world_size
        self.backend = backend
        self._lock = threading.Lock()
        self._wishes: list[Future[SavedCheckpoint]] = []
        self._served: list[Future[SavedCheckpoint]] = []
        self._stopping = threading.Event()

    # --- the training thread's side: Front ---------------------------------------------------------------------

    def publish(self, snapshot: Snapshot) -> None:
        """Front.publish."""
        self.sender.publish(snapshot)

    @property
    def stopping(self) -> bool:
        """Front.stopping."""
        return self._stopping.is_set()

    @property
    def checkpoint_wanted(self) -> bool:
        """Front.checkpoint_wanted."""
        with self._lock:
            return bool(self._wishes)

    def checkpoint_begun(self) -> None:
        """Front.checkpoint_begun."""
        with self._lock:
            self._served += self._wishes
            self._wishes = []

    def checkpoint_saved(self, version: PolicyVersion, path: Path | None) -> None:
        """Front.checkpoint_saved."""
        served, self._served = self._served, []
        for wish in served:
            if not wish.set_running_or_notify_cancel():
                continue
            if path is not None:
                wish.set_result(SavedCheckpoint(version=version, path=path))
            elif version.number == 0:
                wish.set_exception(NotReady("checkpoint: nothing is trained yet; version 0 is model.path"))
            else:
                wish.set_exception(SluiceError(f"checkpoint: {version} could not be written; see the learner's log"))

    # --- the control thread's side -------------------------------------------------------------------------------

    @property
    def newest(self) -> Snapshot:
        """The newest version. Raises NotReady before the first."""
        if self.sender.newest is None:
            raise NotReady("the learner has published no weights yet")
        return self.sender.newest

    def wish_checkpoint(self) -> "Future[SavedCheckpoint]":
        """Resolves when the weights of the next step boundary are saved."""
        wish: Future[SavedCheckpoint] = Future()
        with self._lock:
            self._wishes.append(wish)
        return wish

    def stop(self) -> None:
        """Asks the training thread to end at the next step boundary. Safe in a signal handler."""
        self._stopping.set()
