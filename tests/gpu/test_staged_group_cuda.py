"""The pair of a weight transfer on one GPU: a pair of one, because NCCL refuses two ranks on a device. The same lines run on a
CPU over gloo; what only two GPUs can show is in test_nccl_pairs.py.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._C._distributed_c10d import HashStore

from sluice.accelerator import Lane, host_memory
from sluice.errors import TransferError
from sluice.nccl import prepare_nccl
from sluice.weights.flights import receive, send
from sluice.weights.gloo_group import GlooGroup
from sluice.weights.rendezvous import Rendezvous
from sluice.weights.staged_group import StagedGroup

pytestmark = pytest.mark.timeout(120)

WHERE = Rendezvous(host="127.0.0.1", port=1, secret="s", epoch="alone", rank=0, world_size=1, timeout_s=20.0)
BUCKETS = [np.full(1 << 20, number, np.uint8) for number in range(5)]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    prepare_nccl()
    return torch.device(request.param)


@pytest.fixture
def alone(device: torch.device) -> Iterator[StagedGroup]:
    """A pair whose only end is this one."""
    if device.type == "cuda":
        from sluice.weights import nccl_group

        group = nccl_group.form(HashStore(), WHERE)
    else:
        gloo = GlooGroup.form(HashStore(), WHERE).group
        group = StagedGroup(gloo, epoch=WHERE.epoch, rank=0, device=device, limit_s=WHERE.timeout_s)
        group.connect(limit_s=WHERE.timeout_s)
    yield group
    group.close()


def threads(name: str) -> int:
    """How many threads of this process have a name that begins so."""
    names = [path.read_text() for path in Path("/proc/self/task").glob("*/comm")]
    return sum(each.startswith(name) for each in names)


def test_a_pair_moves_page_locked_and_ordinary_memory_and_has_no_watchdog(
    alone: StagedGroup, device: torch.device
) -> None:
    locked = host_memory(1 << 20, device=device).numpy()
    send(alone, [*BUCKETS, locked])
    assert [int(part[0]) for part in receive(alone, BUCKETS)] == [0, 1, 2, 3, 4]
    alone.rest()
    send(alone, BUCKETS)
    assert threads("pt_nccl_watchdg") == threads("pt_nccl_heartbt") == 0


def test_what_a_pair_receives_is_what_the_device_holds(device: torch.device) -> None:
    lane, here, there = Lane(device), np.arange(256, dtype=np.uint8), np.zeros(256, np.uint8)
    bucket = lane.empty(256)
    with lane.within():
        bucket.copy_(torch.from_numpy(here), non_blocking=True)
        torch.from_numpy(there).copy_(bucket, non_blocking=True)
    while not lane.mark().query():
        pass
    np.testing.assert_array_equal(here, there)


def test_a_pair_that_is_closed_is_aborted_and_never_used_again(alone: StagedGroup) -> None:
    alone.close()
    with pytest.raises(TransferError, match="failed before"):
        send(alone, BUCKETS)


@pytest.mark.gpu
def test_a_transfer_does_not_wait_for_what_the_device_computes() -> None:
    prepare_nccl()
    from sluice.weights import nccl_group

    alone = nccl_group.form(HashStore(), WHERE)
    send(alone, BUCKETS)
    torch.cuda._sleep(20_000_000_000)  # some ten seconds of the stream in which training runs
    training = torch.cuda.Event()
    training.record()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(send, alone, BUCKETS).result()
    assert not training.query(), "the transfer has waited for the stream of training"
    training.synchronize()
    alone.close()
