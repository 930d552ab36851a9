"""Bytes per second of a weight push over gloo, against a raw broadcast of the same bytes in the same buckets, same run.

Two processes on loopback: the learner's sender here, a rollout's receiver there. A push is what a rollout waits for:
opening the transfer, the broadcasts, and the digest over what arrived. The raw broadcast has neither.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from benchmarks.report import Row
from sluice.policy_version import PolicyVersion
from sluice.weights.backends import Rendezvous, TransferStore, join
from sluice.weights.manifest import buckets, plan
from sluice.weights.payload import dense
from sluice.weights.receiver import WeightReceiver
from sluice.weights.sender import WeightSender
from sluice.weights.snapshot import Packer, Snapshot

TOTAL_BYTES = 256 << 20
BUCKET_BYTES = 1 << 20
ROUNDS = 5
TIMEOUT_S = 30.0
TARGET = 0.8


def run() -> list[Row]:
    """Both measured in turns; the medians are compared."""
    pushes, raws = [], []
    with _peer("raw") as raw, _peer("push") as push:
        for _ in range(ROUNDS):
            raws.append(raw())
            pushes.append(push())
    push_rate, raw_rate = (TOTAL_BYTES / float(np.median(times)) / 1e9 for times in (pushes, raws))
    ratio = push_rate / raw_rate
    what = f"{TOTAL_BYTES >> 20} MiB in buckets of {BUCKET_BYTES >> 20} MiB"
    return [
        Row(what=f"weight push, {what}", value=push_rate, unit="GB/s", target="", met=True),
        Row(what=f"raw gloo broadcast, {what}", value=raw_rate, unit="GB/s", target="", met=True),
        Row(what="push / raw", value=ratio, unit="", target=f">= {TARGET}", met=ratio >= TARGET),
    ]


@contextmanager
def _peer(kind: str) -> Iterator:
    """A function that runs one transfer and returns its seconds; the other end is a process of this file."""
    sender, store = WeightSender(backend="gloo", host="127.0.0.1"), TransferStore(bind="127.0.0.1")
    opened = None
    snapshot = _snapshot()
    if kind == "push":
        sender.publish(snapshot)
        opened = sender.open(rollout_id="r", epoch="e", timeout_s=TIMEOUT_S)
        where = [str(opened.store_port), opened.secret]
    else:
        where = [str(store.port), "secret"]
    command = [sys.executable, "-m", "benchmarks.weight_push", kind, *where]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        group = None if kind == "push" else join(_rendezvous(*where, rank=0), backend="gloo")
        first = kind == "push"

        def transfer() -> float:
            nonlocal first
            started = time.perf_counter()
            if group is not None:
                print("go", file=process.stdin)
                for part in buckets(TOTAL_BYTES, BUCKET_BYTES):
                    group.broadcast(snapshot.buffer[part])
            else:
                if not first:
                    sender.open(rollout_id="r", epoch="e", timeout_s=TIMEOUT_S)
                first = False
                print("go", file=process.stdin)
            assert process.stdout is not None
            assert process.stdout.readline().strip() == "done"
            return time.perf_counter() - started

        transfer()  # connects and touches the memory
        yield transfer
        process.stdin.close()
        process.wait(TIMEOUT_S)
    sender.close()


def _receive(kind: str, port: str, secret: str) -> None:
    """The other end: one transfer for every line on standard input."""
    rendezvous, snapshot = _rendezvous(port, secret, rank=1), _snapshot()
    payload = dense(snapshot.manifest, snapshot.buffer)
    if kind == "raw":
        group, buffer = join(rendezvous, backend="gloo"), np.empty(TOTAL_BYTES, np.uint8)
        for _ in sys.stdin:
            for part in buckets(TOTAL_BYTES, BUCKET_BYTES):
                group.broadcast(buffer[part])
            print("done", flush=True)
        return
    receiver = WeightReceiver()
    receiver.join(rendezvous, backend="gloo")
    for _ in sys.stdin:
        receiver.begin(epoch="e", manifest=snapshot.manifest, payload=payload)
        receiver.recycle(receiver.result(timeout_s=TIMEOUT_S))
        print("done", flush=True)
    receiver.close()


def _rendezvous(port: str, secret: str, *, rank: int) -> Rendezvous:
    return Rendezvous(
        host="127.0.0.1", port=int(port), secret=secret, epoch="e", rank=rank, world_size=2, timeout_s=TIMEOUT_S
    )


def _snapshot() -> Snapshot:
    packer = Packer(plan([("weight", "float32", (TOTAL_BYTES // 4,))], bucket_bytes=BUCKET_BYTES))
    packer.put("weight", np.random.default_rng(0).integers(0, 255, TOTAL_BYTES, np.uint8))
    return packer.seal(PolicyVersion(lineage="a", number=1))


if __name__ == "__main__":
    _receive(*sys.argv[1:])
