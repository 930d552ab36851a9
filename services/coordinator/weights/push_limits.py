"""The deadlines of a push, by the bytes of the model (sluice/weights/deadlines.py)."""

from dataclasses import dataclass
from pathlib import Path

from sluice.weights.deadlines import handling_s, transfer_s
from sluice.weights.rendezvous import join_limit_s

SLACK_S = 2.0
"""How much longer the coordinator waits than whoever it calls, whose own error says more."""


@dataclass(kw_only=True, slots=True)
class PushLimits:
    """Seconds for each call of a push."""

    timeout_s: float
    """weights.timeout_s."""
    model_bytes: int
    """The largest bytes known so far of what an engine loads: the model's files, or a version that was announced."""

    def opening_s(self) -> float:
        """OpenTransfer: the learner digests the buckets of a new version, or writes its file."""
        return self.timeout_s + handling_s(self.model_bytes)

    def joining_s(self, backend: str) -> float:
        """JoinEpoch, which moves no weights."""
        return join_limit_s(backend, self.timeout_s) + SLACK_S

    def arriving_s(self, version_bytes: int) -> float:
        """What a rollout lets a version take to arrive: each bucket has a limit, the whole has one bucket's limit more than
        its bytes need."""
        self.model_bytes = max(self.model_bytes, version_bytes)
        return self.timeout_s + transfer_s(version_bytes)

    def applying_s(self, version_bytes: int, *, finish_s: float) -> float:
        """ApplyWeights: the version arrives, samples end within `finish_s`, adapters are merged, the engine loads the model."""
        return self.arriving_s(version_bytes) + finish_s + 2 * handling_s(self.model_bytes) + SLACK_S


def files_bytes(model_path: str) -> int:
    """The size of a model folder's weights; 0 where this machine does not have the folder."""
    try:
        return sum(file.stat().st_size for file in Path(model_path).glob("*.safetensors"))
    except OSError:
        return 0
