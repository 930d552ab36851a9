"""What a failed transfer leaves behind, and what a copy waits for."""

import multiprocessing
import os
import secrets
import time
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from benchmarks.gpu_parts.context import Context, Figure, seconds
from benchmarks.gpu_parts.lines import Lines, line_pair
from sluice.accelerator import SideCopies, host_memory, settle
from sluice.addresses import loopback_interface
from sluice.errors import TransferError
from sluice.weights.backends import Rendezvous, TransferStore, join

LIMIT_S = 5.0
HEARTBEAT_S = 5
"""After which a monitor of torch's NCCL groups would end a process whose group has timed out."""

LIVES_S = 20.0


def failing(context: Context) -> Iterator[Figure]:
    """Two processes form a pair that cannot work, and live on: over NCCL on one device; over gloo with a silent sender."""
    os.environ |= {"TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC": str(HEARTBEAT_S), "GLOO_SOCKET_IFNAME": loopback_interface()}
    limit_s, lives_s = (0.4, 0.2) if context.small else (LIMIT_S, LIVES_S)
    store = TransferStore(bind="127.0.0.1")
    secret = secrets.token_hex(8)
    ends = []
    for rank in (0, 1):
        where = Rendezvous(
            host="127.0.0.1",
            port=store.port,
            secret=secret,
            epoch="failing",
            rank=rank,
            world_size=2,
            timeout_s=limit_s,
        )
        here, there = line_pair()
        end = multiprocessing.get_context("fork").Process(target=_end, args=(context, where, there, lives_s))
        end.start()
        there.close()
        ends.append((rank, end, here))
    for rank, end, here in ends:
        failed_s = _told(here, within_s=10 * limit_s + 20)
        end.join(lives_s + 20)
        alive = end.exitcode == 0
        end.kill()
        yield Figure(
            what=f"rank {rank}: the failure was said after", value=-1.0 if failed_s is None else failed_s, unit="s"
        )
        yield Figure(what=f"rank {rank}: alive {lives_s:g} s later", value=float(alive), unit="")
        assert failed_s is not None
        assert alive, f"rank {rank} ended with {end.exitcode}"


def _told(end: Lines, *, within_s: float) -> float | None:
    """After how many seconds that process has failed; None when it says nothing, or has ended."""
    try:
        return end.receive(within_s=within_s)
    except (TimeoutError, EOFError):
        return None


def streams(context: Context) -> Iterator[Figure]:
    """How long a copy to the host takes while the device computes: behind the computation, and beside it."""
    device = torch.device(context.device)
    size, products, block = (64, 4, 1 << 16) if context.small else (8192, 200, 64 << 20)
    left = torch.randn(size, size, device=device, dtype=torch.float32 if context.small else torch.bfloat16)
    here, there = torch.ones(block, dtype=torch.uint8, device=device), host_memory(block, device=device)
    beside = SideCopies(device)

    def alone() -> None:
        there.copy_(here, non_blocking=True)

    idle_s = seconds(context.device, alone, rounds=3)
    yield Figure(what=f"{block >> 10} KiB, nothing else running", value=1e3 * idle_s, unit="ms")
    for name in ("in the same stream", "in a stream of its own"):
        settle(device)
        beside.copy(there.numpy(), here)  # the side stream waits for what came before, so it is asked first
        beside.finish()
        for _ in range(products):
            left @ left
        started = time.perf_counter()
        if name == "in the same stream":
            alone()
            settle(device)
        else:
            _beside(beside, there.numpy(), here)
        took = time.perf_counter() - started
        settle(device)
        yield Figure(
            what=f"beside {products} products, {name}",
            value=1e3 * took,
            unit="ms",
            ratio=took / idle_s,
            ratio_of="alone",
        )


def _beside(copies: SideCopies, there: np.ndarray, here: torch.Tensor) -> None:
    """A copy of something that was finished long ago, from a thread of its own with a stream of its own."""
    import threading

    def work() -> None:
        stream = torch.cuda.Stream() if here.is_cuda else None
        with torch.cuda.stream(stream) if stream is not None else torch.cpu.stream(torch.cpu.current_stream()):
            copies.copy(there, here)
            copies.finish()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def _end(context: Context, where: Rendezvous, told: Lines, lives_s: float) -> None:
    """One end. Exits with 0 if it has failed as it should and is alive `lives_s` later."""
    backend: Literal["gloo", "nccl"] = "gloo" if context.small else "nccl"
    started = time.perf_counter()
    try:
        group = join(where, backend=backend)
        if where.rank == 1:
            group.broadcast(np.zeros(8, np.uint8))  # rank 0 sends nothing
        time.sleep(where.timeout_s)
        raise TransferError("rank 0 is silent")
    except TransferError as error:
        print(f"rank {where.rank}: {error}")
    told.send(time.perf_counter() - started)
    time.sleep(lives_s)
    os._exit(0)
