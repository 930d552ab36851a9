"""Snapshots and joins for the weight transfer tests."""

import numpy as np

from sluice.policy_version import PolicyVersion
from sluice.weights.backends import Rendezvous
from sluice.weights.manifest import plan
from sluice.weights.receiver import WeightReceiver
from sluice.weights.sender import OpenedTransfer
from sluice.weights.snapshot import Packer, Snapshot

BUCKET_BYTES = 64 << 10


def random_snapshot(number: int, *, total_bytes: int = 4 << 20, bucket_bytes: int = BUCKET_BYTES) -> Snapshot:
    """One tensor of random bytes, the same for the same number."""
    packer = Packer(plan([("weight", "float32", (total_bytes // 4,))], bucket_bytes=bucket_bytes))
    packer.put("weight", np.random.default_rng(number).integers(0, 255, total_bytes, np.uint8))
    return packer.seal(PolicyVersion(lineage="a", number=number))


def stepped_snapshot(number: int, *, total_bytes: int = 4 << 20, bucket_bytes: int = BUCKET_BYTES) -> Snapshot:
    """Version 0 is `random_snapshot(0)`; each later one changes 2 % of the bytes of the version before."""
    first = random_snapshot(0, total_bytes=total_bytes)
    data = first.buffer.copy()
    for step in range(number):
        rng = np.random.default_rng(step)
        places = rng.integers(0, data.size, data.size // 50)
        data[places] += rng.integers(1, 255, len(places), np.uint8)
    packer = Packer(
        plan([(spec.name, spec.dtype, spec.shape) for spec in first.manifest.tensors], bucket_bytes=bucket_bytes)
    )
    packer.put("weight", data)
    return packer.seal(PolicyVersion(lineage="a", number=number))


def rendezvous(*, port: int, secret: str, epoch: str, timeout_s: float) -> Rendezvous:
    """As the coordinator passes it on to a receiver."""
    return Rendezvous(
        host="127.0.0.1", port=port, secret=secret, epoch=epoch, rank=1, world_size=2, timeout_s=timeout_s
    )


def join_opened(receiver: WeightReceiver, opened: OpenedTransfer, epoch: str, *, timeout_s: float = 5.0) -> None:
    """The receiver's half of a new epoch."""
    where = rendezvous(port=opened.store_port, secret=opened.secret, epoch=epoch, timeout_s=timeout_s)
    receiver.join(where, backend="gloo")
