"""The ranks of one learner, and the collectives between ranks. Plain tensors only, never pickled objects.

Commands and batches travel on the CPU over gloo, so that they need no device; gradients and shards travel on the model's
device. Rank 0 leads. A leader without work sends IDLE, so that no rank waits longer than one poll of the coordinator.

 who waits   for what                             unblocked by
 each rank   the other ranks, in a collective     the last rank's part, the end of a rank, or COLLECTIVE_TIMEOUT
The ranks' parent notices a dead one at once on its machine, closed sockets show the death on other machines; a machine with a
cut link is noticed after COLLECTIVE_TIMEOUT. Each case ends all ranks, which then start again from the checkpoint.
"""

import contextlib
import enum
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore, TCPStore
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from services.learner.distributed.local_ranks import STORE_FD
from sluice.errors import ConfigError, Unavailable

LEADER = 0

COLLECTIVE_TIMEOUT = timedelta(minutes=10)
"""Limit of one collective: above the leader's patience with a coordinator that is silent when it is asked for the configuration
(`Registration.patience_s`). In its later waits the leader sends the other ranks a command every MEANWHILE_S (thread.py)."""

_SIGNS_OF_LOSS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out", "timed out")
"""Texts by which to know errors of gloo and NCCL, which have no types of their own."""


class Command(enum.IntEnum):
    """The leader's orders to all ranks."""

    IDLE = 0
    TRAIN = 1
    CHECKPOINT = 2
    STOP = 3
    """The run has ended."""
    LEAVE = 4
    """The learner was asked to stop; the run has not ended."""
    PUBLISH = 5
    """All ranks gather the weights that they have trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """This process's place among the ranks, and the collectives."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh
    backend: Literal["gloo", "nccl"]
    """The backend that carries gradients and shards."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == LEADER

    def add_up(self, values: Tensor) -> Tensor:
        """Sums over ranks, in place; every rank gets the sum."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def largest(self, values: Tensor) -> Tensor:
        """Maximum over ranks, in place; every rank gets the maximum."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def join_columns(self, values: Tensor) -> Tensor:
        """[k, M of this rank] on each rank -> [k, sum of M], in rank order, on every rank."""
        if self.size == 1:
            return values
        widths = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        widths[self.rank] = values.shape[1]
        counts = self.add_up(widths).tolist()
        padded = values.new_zeros(values.shape[0], max(counts))
        padded[:, : values.shape[1]] = values
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:, :count] for part, count in zip(parts, counts, strict=True)], dim=1)

    def agree(self, ok: bool) -> bool:
        """Whether `ok` is true on every rank; also a barrier."""
        return self.add_up(torch.tensor([0 if ok else 1], device=self.device)).item() == 0

    def command(self, command: Command = Command.IDLE) -> Command:
        """The leader's command on every rank; the followers' argument is ignored."""
        return Command(int(self.share_array(np.array([command], np.int64), dtype=np.int64)[0]))

    def share_array(self, values: np.ndarray | None, *, dtype: type[np.generic]) -> np.ndarray:
        """The leader's vector on every rank; followers give the dtype, and any `values`."""
        if self.size == 1:
            assert values is not None
            return values
        length = torch.tensor([len(values) if self.leads and values is not None else 0])
        dist.broadcast(length, src=LEADER)
        wire = np.ascontiguousarray(values) if self.leads and values is not None else np.empty(int(length), dtype)
        assert wire.dtype == dtype
        tensor = torch.from_numpy(wire if wire.flags.writeable else wire.copy())
        dist.broadcast(tensor, src=LEADER)
        return tensor.numpy()

    def share_texts(self, texts: Sequence[str]) -> list[str]:
        """The leader's texts on every rank; the followers' argument is ignored."""
        joined = np.frombuffer("\0".join(texts).encode(), np.uint8)
        return self.share_array(joined, dtype=np.uint8).tobytes().decode().split("\0")

    def hear_all(self, text: str) -> list[str]:
        """The text of every rank, in rank order, on every rank. No text may hold a NUL."""
        wire = np.frombuffer(text.encode() + b"\0", np.uint8).copy()
        joined = self.join_columns(torch.from_numpy(wire).to(self.device)[None])
        return bytes(joined[0].tolist()).decode().split("\0")[:-1]

    def leave(self) -> None:
        """Ends the process groups. Either every rank calls `leave`, or none."""
        dist.destroy_process_group()


def join_ranks() -> Ranks:
    """Joins the ranks that local_ranks.py or torchrun started; otherwise a world of one. NCCL with a CUDA device, else gloo."""
    alone = "RANK" not in os.environ
    rank, size = (0, 1) if alone else (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
    device = device_of_rank(alone=alone)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.set_device(device)
    store = HashStore() if alone else _store(rank, size)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=store,
        rank=-1 if store is None else rank,
        world_size=-1 if store is None else size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    # An explicit mesh: with a GPU in sight fully_shard would otherwise move a gloo model there.
    mesh = init_device_mesh(device.type, (size,))
    return Ranks(rank=rank, size=size, device=device, mesh=mesh, backend="nccl" if cuda else "gloo")


def _store(rank: int, size: int) -> TCPStore | None:
    """The store of ranks that local_ranks.py started; None: torchrun's variables say where the store is."""
    listening = os.environ.pop(STORE_FD, None)
    if listening is None:
        return None
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master=rank == LEADER,
        timeout=COLLECTIVE_TIMEOUT,
        wait_for_workers=False,
        master_listen_fd=int(listening) if listening else None,
    )


def device_of_rank(*, alone: bool) -> torch.device:
    """The device at this rank's place in CUDA_VISIBLE_DEVICES, or the CPU where there is none. Raises ConfigError."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # A rank without torchrun must not take LOCAL_RANK from whatever started `sluice up`.
    place, count = 0 if alone else int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if place >= count:
        raise ConfigError(
            f"rank {place} of this machine has no GPU: CUDA shows {count} "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}), and each rank takes one; lower "
            "launch.learner_nproc_per_node, of `sluice learner-node` --nproc-per-node"
        )
    return torch.device("cuda", place)


class RankLost(Unavailable):
    """Another rank is gone or unreachable."""


@contextlib.contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Turns the failure of a collective with a lost rank into RankLost, whose message says what happens next."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS_OF_LOSS):
            raise
        raise RankLost(
            f"rank {os.environ.get('RANK', LEADER)} on {socket.gethostname()} waited for another rank of the learner, "
            f"which is gone or unreachable ({str(error).splitlines()[0]}); all ranks start again from the last checkpoint"
        ) from error
