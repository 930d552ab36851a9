"""A pair over NCCL between two GPUs that fails in the middle of a transfer: both processes outlive torch's own monitors."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from sluice.errors import TransferError
from sluice.nccl import prepare_nccl
from sluice.weights.backends import Rendezvous, TransferStore, join
from sluice.weights.flights import receive, send
from tests.forked import FORKED

pytestmark = [pytest.mark.gpu, pytest.mark.needs("two-gpus"), pytest.mark.timeout(300)]

HEARTBEAT_S = 5
"""After which torch's monitor of the first group would end the process; its default is 480 s."""

LIMIT_S, LIVES_S = 3.0, 25.0
BUCKET_BYTES, BUCKETS, BEFORE = 8 << 20, 16, 3


def test_an_end_that_freezes_costs_the_pair_and_neither_process() -> None:
    ends = []
    for rank in (0, 1):
        here, theirs = FORKED.Pipe()
        process = FORKED.Process(target=_end, args=(rank, theirs), daemon=True)
        process.start()
        theirs.close()
        ends.append((process, here))
    (_, learner), (frozen, rollout) = ends
    try:
        rollout.send_bytes(learner.recv_bytes())  # where to meet
        sent = json.loads(_answer(learner))
        assert sent["error"].startswith("epoch pair: ")
        assert sent["took_s"] < LIMIT_S + 10
        assert sent["steps"] > 0, "training has waited for the receiver"
        os.kill(frozen.pid, signal.SIGCONT)
        assert json.loads(_answer(rollout))["error"].startswith("epoch pair: ")
        for _, pipe in ends:  # each has lived LIVES_S longer, and its first group still works
            assert json.loads(_answer(pipe)) == {"sum": 1.0}
    finally:
        for process, _ in ends:
            process.kill()
            process.join(30)


def _answer(pipe: Connection) -> bytes:
    assert pipe.poll(150), "no answer in time"
    return pipe.recv_bytes()


def _end(rank: int, pipe: Connection) -> None:
    """One end, with a first group of its own as FSDP or vLLM would have."""
    os.environ |= {"CUDA_VISIBLE_DEVICES": str(rank), "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(HEARTBEAT_S)}
    prepare_nccl()
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    dist.init_process_group("nccl", store=HashStore(), rank=0, world_size=1, timeout=timedelta(seconds=60))
    one = torch.ones(1, device="cuda")
    dist.all_reduce(one)
    store = TransferStore(bind="127.0.0.1") if rank == 0 else None
    if store is not None:
        pipe.send_bytes(json.dumps(store.port).encode())
    port = store.port if store is not None else json.loads(pipe.recv_bytes())
    where = Rendezvous(
        host="127.0.0.1", port=port, secret="s", epoch="pair", rank=rank, world_size=2, timeout_s=LIMIT_S
    )
    group = join(where, backend="nccl")
    outcome = _told(lambda: send(group, _buckets())) if rank == 0 else _told(lambda: _take_and_freeze(group))
    group.close()
    pipe.send_bytes(json.dumps(outcome).encode())
    time.sleep(LIVES_S)
    dist.all_reduce(one)
    pipe.send_bytes(json.dumps({"sum": one.item()}).encode())
    time.sleep(60)  # until the test has heard the other one


def _told(transfer: Callable[[], None]) -> dict[str, Any]:
    """How a transfer failed, when, and how many steps were computed meanwhile."""
    import threading

    import torch

    over, steps = threading.Event(), 0
    started, error = time.monotonic(), [""]

    def run() -> None:
        try:
            transfer()
        except TransferError as failed:
            error[0] = str(failed)
        over.set()

    threading.Thread(target=run).start()
    left = torch.randn(2048, 2048, device="cuda")
    while not over.is_set():
        left = torch.nn.functional.normalize(left @ left)
        torch.cuda.synchronize()
        steps += 1
    return {"error": error[0], "took_s": time.monotonic() - started, "steps": steps}


def _buckets() -> Iterator[np.ndarray]:
    for number in range(BUCKETS):
        yield np.full(BUCKET_BYTES, number, np.uint8)


def _take_and_freeze(group: Any) -> None:
    rooms = (np.zeros(BUCKET_BYTES, np.uint8) for _ in range(BUCKETS))
    with closing(receive(group, rooms)) as arriving:
        for number, part in enumerate(arriving):
            assert (part == number).all()
            if number == BEFORE:
                os.kill(os.getpid(), signal.SIGSTOP)
