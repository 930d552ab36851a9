"""The learner's newest version and the requests to the learner, shared by training thread and control thread."""

import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sluice.errors import NotReady, SluiceError
from sluice.policy_version import PolicyVersion
from sluice.weights.sender import WeightSender
from sluice.weights.snapshot import Snapshot


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedCheckpoint:
    """A complete checkpoint."""

    version: PolicyVersion
    path: Path


class PublisherState:
    """`Publisher` of ports.py for the training thread, and the servicer's view for the control thread. Thread-safe."""

    def __init__(self, sender: WeightSender, *, world_size: int, backend: Literal["gloo", "nccl"]) -> None:
        self.sender = sender
        self.world_size = world_size
        self.backend = backend
        self._lock = threading.Lock()
        self._requests: list[Future[SavedCheckpoint]] = []
        self._served: list[Future[SavedCheckpoint]] = []
        self._stopping = threading.Event()

    # --- the training thread's side: Publisher ---------------------------------------------------------------------

    def publish(self, snapshot: Snapshot) -> None:
        """Publisher.publish."""
        self.sender.publish(snapshot)

    @property
    def stopping(self) -> bool:
        """Publisher.stopping."""
        return self._stopping.is_set()

    @property
    def checkpoint_wanted(self) -> bool:
        """Publisher.checkpoint_wanted."""
        with self._lock:
            return bool(self._requests)

    def checkpoint_begun(self) -> None:
        """Publisher.checkpoint_begun."""
        with self._lock:
            self._served += self._requests
            self._requests = []

    def checkpoint_saved(self, version: PolicyVersion, path: Path | None) -> None:
        """Publisher.checkpoint_saved."""
        served, self._served = self._served, []
        for request in served:
            if not request.set_running_or_notify_cancel():
                continue
            if path is not None:
                request.set_result(SavedCheckpoint(version=version, path=path))
            elif version.number == 0:
                request.set_exception(NotReady("checkpoint: nothing is trained yet; version 0 is model.path"))
            else:
                request.set_exception(SluiceError(f"checkpoint: {version} could not be written; see the learner's log"))

    # --- the control thread's side -------------------------------------------------------------------------------

    @property
    def newest(self) -> Snapshot:
        """The newest version. Raises NotReady before the first version."""
        if self.sender.newest is None:
            raise NotReady("the learner has published no weights yet")
        return self.sender.newest

    def request_checkpoint(self) -> "Future[SavedCheckpoint]":
        """Resolves when the weights of the next step boundary are saved."""
        request: Future[SavedCheckpoint] = Future()
        with self._lock:
            self._requests.append(request)
        return request

    def stop(self) -> None:
        """Asks the training thread to end at the next step boundary. Safe in a signal handler."""
        self._stopping.set()
