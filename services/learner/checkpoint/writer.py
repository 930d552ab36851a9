"""Writes checkpoints while training goes on: a copy in host memory at a step boundary, then a thread of each rank.

Collective: every rank begins the same checkpoint. The threads have a process group of their own, so that their collectives
never meet a collective of training; in that group the ranks agree whether the write worked, so one full disk cannot part
the ranks. Rank 0 alone knows that all shards are on disk and gives the folder its name. A checkpoint waits until the former
checkpoint is written.

Not torch's `async_save`, which has such a thread but no sealing: sealing has to come after the write and before anybody
hears of the checkpoint.
"""

import time
from concurrent.futures import Future, wait
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.utils._pytree import tree_leaves

from services.learner.checkpoint import folders
from services.learner.checkpoint.background import in_background
from services.learner.checkpoint.training_state import CheckpointState, training_state, write_state
from services.learner.distributed.ranks import LEADER, Ranks
from services.learner.training.train_step import Trainer
from sluice.errors import Expired

log = structlog.get_logger(__name__)

WRITE_LIMIT_S = 1800.0
"""Limit of writing one checkpoint. Chosen: 400 GB of state at a few hundred MB/s; a disk that takes longer hangs."""


_CLOSE_LIMIT_S = 30.0

_STAGES_AGAIN = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)
"""Whether torch's stager can copy more than once. That of torch 2.11 ends with its first copy, so that every checkpoint takes
fresh host memory there."""

_COPY_AHEAD_BYTES = 10_000_000
"""torch's default."""


class CheckpointWriter:
    """One rank's writer. Made on all ranks together; `background` is `learner.async_checkpoint`."""

    def __init__(self, *, directory: Path, keep: int, background: bool, ranks: Ranks) -> None:
        self._directory, self._keep, self._ranks = directory, keep, ranks
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=WRITE_LIMIT_S))
        assert isinstance(group, dist.ProcessGroup)
        self._group = group
        self._background = background
        # The stager keeps its host memory (12 bytes a parameter, over all ranks) from one checkpoint to the next.
        self._stager = DefaultStager(_staging(cuda=ranks.device.type == "cuda"))
        self._under_way: Future[Path | None] | None = None

    def begin(self, trainer: Trainer, state: CheckpointState) -> "Future[Path | None]":
        """Saves the trainer's state of this moment. On rank 0 the future has the path, or None after a logged disk error.

        Raises Expired when the former checkpoint is still being written after WRITE_LIMIT_S.
        """
        if self._under_way is not None:
            if not wait([self._under_way], timeout=WRITE_LIMIT_S).done:
                raise still_writing(f"rank {self._ranks.rank}: the former checkpoint")
            self._under_way.result()
        tensors = training_state(trainer)
        if not self._background:
            done: Future[Path | None] = Future()
            done.set_result(self._write(tensors, state))
            return done
        started = time.perf_counter()
        staged = self._stager.stage(tensors)
        if not _STAGES_AGAIN:
            self._stager = DefaultStager(_staging(cuda=self._ranks.device.type == "cuda"))
        assert isinstance(staged, dict)
        log.debug("checkpoint_staged", step=state.step, stall_s=time.perf_counter() - started)
        self._under_way = in_background("checkpoint", self._write, staged, state)
        return self._under_way

    def close(self) -> None:
        """Waits until a checkpoint under way is written, at most _CLOSE_LIMIT_S: the former checkpoint stands."""
        if self._under_way is not None and not wait([self._under_way], timeout=_CLOSE_LIMIT_S).done:
            log.warning("checkpoint_abandoned", reason=f"it was still being written after {_CLOSE_LIMIT_S:.0f} s")

    def _write(self, tensors: dict[str, Any], state: CheckpointState) -> Path | None:
        """Begins, writes the shards of all ranks, seals; a process killed in between leaves the former checkpoints."""
        started, partial = time.perf_counter(), folders.partial_of(self._directory, state.step)
        try:
            if not self._begun(partial, tensors):
                return None
            # The tensors are on the host already; with a copy-ahead of 0 torch does not touch the device in this thread.
            writer = FileSystemWriter(partial, per_thread_copy_ahead=0 if self._background else _COPY_AHEAD_BYTES)
            save_shards(tensors, storage_writer=writer, process_group=self._group)
            if not self._ranks.leads:
                return None
            write_state(state, partial)
            final = folders.seal(partial, state.step)
            folders.retain(self._directory, newest=state.step, keep=self._keep)
        except (OSError, CheckpointException) as error:
            if self._ranks.leads:
                folder, needed_bytes = str(self._directory), _size_bytes(tensors)
                log.error(
                    "checkpoint_failed",
                    step=state.step,
                    reason=_reason(error),
                    folder=folder,
                    needed_bytes=needed_bytes,
                )
                folders.discard(partial)
            return None
        log.info("checkpoint_written", path=str(final), seconds=time.perf_counter() - started)
        return final

    def _begun(self, partial: Path, tensors: dict[str, Any]) -> bool:
        """On every rank, whether rank 0 has made the folder. Raises OSError on rank 0 when the folder cannot be made."""
        flag = torch.zeros(1)
        try:
            if self._ranks.leads:
                folders.begin(partial, needed_bytes=_size_bytes(tensors))
                flag += 1
        finally:
            dist.broadcast(flag, src=LEADER, group=self._group)
        return bool(flag)


def still_writing(what: str) -> Expired:
    """The error to raise after WRITE_LIMIT_S."""
    return Expired(f"{what}: training waited {WRITE_LIMIT_S:.0f} s for it to be written; does the disk hang?")


def _staging(*, cuda: bool) -> StagingOptions:
    """Options for a real copy, also of tensors on the CPU, that is done when `stage` returns."""
    return StagingOptions(
        use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
    )


def _size_bytes(tensors: dict[str, Any]) -> int:
    """Bytes of all ranks together: a sharded tensor counts its elements on every rank."""
    return sum(leaf.numel() * leaf.element_size() for leaf in tree_leaves(tensors) if isinstance(leaf, torch.Tensor))


def _reason(error: OSError | CheckpointException) -> str:
    """The cause in one line; torch's own text is a traceback of every rank."""
    if isinstance(error, OSError):
        return str(error)
    return "; ".join(f"rank {rank}: {cause}" for rank, (cause, _) in error.failures.items())
