"""The files of a run that the coordinator writes: batches, metrics, samples, ledger rows. Writes leave the event loop, and
wait for room on a full disk (sluice/run_dir/full_disk.py).

RUN/batches/step-000012.groups   one batch, immutable: length-framed payloads (zstd, Group), as accepted
RUN/metrics.jsonl             a line a step and a line an evaluation; thinned (sluice/run_dir/thinning.py)
RUN/samples.jsonl             a group of each step, for reading; thinned likewise
RUN/sample_tokens.jsonl       the same groups token by token (sluice/run_dir/token_figures.py); thinned likewise
RUN/prompt_places.json        how far the prompts were at the newest checkpoints (prompt_places.py)
RUN/ledger/part-*.parquet     a row for every group that ended (ledger_writer.py)
RUN/evaluations/*.parquet     a file an evaluation, a row for every prompt (evaluation_files.py)
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import blake3
import structlog

from services.coordinator.state.evaluation_result import EvaluationResult
from services.coordinator.storage import evaluation_files, ledger_writer
from services.coordinator.storage.outcomes import recent_outcomes
from sluice.clock import SystemClock
from sluice.config.schema.run import FILE_BYTES
from sluice.errors import DiskFull, NotFound
from sluice.report.ledger_tables import find_row
from sluice.report.metrics import METRICS_FILE, SAMPLES_FILE
from sluice.run_dir.batch_file import (
    batch_files,
    batch_path,
    digest_of,
    frames,
    payload_at,
    payloads_of,
    poison_files,
    poison_path,
)
from sluice.run_dir.durable import append_line, append_lines, name_synced, sync, write_synced
from sluice.run_dir.full_disk import DiskWaits, NoRoom
from sluice.run_dir.ledger_parts import damage_skipped, open_parts, part_paths
from sluice.run_dir.private import make_private_folder
from sluice.run_dir.thinning import thin

log = structlog.get_logger(__name__)

T = TypeVar("T")

_ENDED = ("group_id", "admission", "term", "step", "tokens", "lost_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFile:
    """A batch in the form that is handed out."""

    step: int
    payloads: Sequence[bytes]
    """Encoded groups, in admission order."""
    digest: str
    """blake3 over the framed payloads, hex."""


class RunFiles:
    """The coordinator's files under RUN."""

    def __init__(self, run_dir: Path, *, most_bytes: int = FILE_BYTES, disk: DiskWaits | None = None) -> None:
        """Files of lines that are only for readers are thinned from `most_bytes` on (`run.file_max_bytes`).

        Raises OSError, also for a full disk.
        """
        self.run_dir, self._most_bytes = run_dir, most_bytes
        self.disk = disk or DiskWaits(clock=SystemClock())
        self._appending, self._keeping = threading.Lock(), threading.Lock()
        self.follow: Callable[[Mapping[str, Any]], None] = lambda line: None
        """A callback for every written line of a step or an evaluation; must return at once."""
        for folder in ("batches", "ledger", "logs"):
            make_private_folder(run_dir / folder)

    async def keep_config(self, text: str) -> None:
        """Writes RUN/config.yaml, the resolved configuration of the last start. `sluice up` has written the file already.

        Afterwards the names of all files and folders in RUN are on disk.
        """

        def keep() -> None:
            path = self.run_dir / "config.yaml"
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_synced(path, [text.encode()])
            sync(self.run_dir)

        await self.disk.write(keep)

    async def stage_batch(self, step: int, *, payloads: Sequence[bytes]) -> BatchFile:
        """Writes and syncs batch `step` under a temporary name; `name_batch` makes the file the batch."""

        def staged() -> str:
            digest = digest_of(payloads)
            write_synced(self._staged_path(step, digest), frames(payloads))
            return digest

        return BatchFile(step=step, payloads=payloads, digest=await self.disk.write(staged))

    async def name_batch(self, step: int, digest: str) -> None:
        """Makes the staged file of this digest batch `step`; does nothing when the file has its name already."""
        with contextlib.suppress(FileNotFoundError):
            await self.disk.write(name_synced, self._staged_path(step, digest), self._batch_path(step))

    async def keep_poison(self, step: int, digest: str) -> Path:
        """Keeps batch `step` under a second name, which no later batch takes; returns the path."""
        path = poison_path(self.run_dir, step, digest)
        await self.disk.write(_link, self._batch_path(step), path)
        return path

    async def read_batch(self, step: int) -> BatchFile:
        """Reads batch `step`. Raises NotFound when the file is gone."""

        def read(file: BinaryIO) -> BatchFile:
            body = file.read()
            return BatchFile(step=step, payloads=payloads_of(body), digest=blake3.blake3(body).hexdigest())

        return await self._read(step, read)

    async def payloads_with(self, step: int) -> Sequence[bytes]:
        """The payloads of batch `step`; with step -1 those of all batches that were set aside. Raises NotFound."""
        if step >= 0:
            return (await self.read_batch(step)).payloads
        return await asyncio.to_thread(
            lambda: [payload for path in poison_files(self.run_dir) for payload in payloads_of(path.read_bytes())]
        )

    async def read_group(self, step: int, index: int) -> bytes:
        """The payload of one group of batch `step`. Raises NotFound when the file is gone."""
        return await self._read(step, lambda file: payload_at(file, index))

    async def _read(self, step: int, read: Callable[[BinaryIO], T]) -> T:
        path = self._batch_path(step)

        def opened() -> T:
            with path.open("rb") as file:
                return read(file)

        try:
            return await asyncio.to_thread(opened)
        except FileNotFoundError as error:
            raise NotFound(f"batch {step}: {path} is gone; it is kept while a checkpoint <= {step} exists") from error

    async def batch_digest(self, step: int) -> str:
        """The digest of batch `step`. Raises NotFound when the file is gone."""
        return await self._read(step, lambda file: blake3.blake3(file.read()).hexdigest())

    def batch_steps(self) -> list[int]:
        """The steps whose batch file has its name."""
        return sorted(step for step, path in batch_files(self.run_dir) if path == self._batch_path(step))

    def is_staged(self, step: int, digest: str) -> bool:
        """Whether the file of batch `step` waits for its name."""
        return self._staged_path(step, digest).exists()

    def hold_a_run(self) -> bool:
        """Whether a batch, a row of the ledger or a checkpoint is here: otherwise nothing of a run is lost."""
        return bool(self.batch_steps() or part_paths(self.run_dir) or self.kept_checkpoints())

    def drop_batches_before(self, step: int) -> None:
        """Removes batches that no kept checkpoint can ask for."""
        for found, path in list(batch_files(self.run_dir)):
            if found < step:
                path.unlink(missing_ok=True)

    def kept_checkpoints(self) -> list[int]:
        """Versions of the existing checkpoints, oldest first."""
        names = (folder.name.removeprefix("step-") for folder in (self.run_dir / "checkpoints").glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())

    async def append(self, name: str, line: Mapping[str, Any], *, synced: bool = False) -> None:
        """Appends one JSON line to RUN/<name>; `synced` where something durable will point to the line."""
        await self.disk.write(append_line, self.run_dir / name, line, synced=synced)

    async def append_all(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Appends all lines or none, synced, for a caller who can be told to come again: raises DiskFull, without a wait."""
        try:
            await asyncio.to_thread(append_lines, self.run_dir / name, lines, synced=True)
        except NoRoom as error:
            raise DiskFull(str(error)) from error

    async def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Appends a line of a step or an evaluation to RUN/metrics.jsonl; on disk, because Redis's record follows."""
        await self.disk.write(self._append_thinned, METRICS_FILE, line)
        self.follow(line)

    async def keep_evaluation(self, result: EvaluationResult, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes an evaluation's file to RUN/evaluations, in place of a former one of its set and version; of too many files,
        or too large ones, the oldest go."""
        await self.disk.write(self._keep_evaluation, result, rows)

    def _keep_evaluation(self, result: EvaluationResult, rows: Sequence[Mapping[str, Any]]) -> None:
        with self._keeping:  # two evaluations of one version may end at once, and have one file
            evaluation_files.keep(self.run_dir, result, rows, most_bytes=self._most_bytes)

    async def append_sample(self, line: Mapping[str, Any], *, name: str = SAMPLES_FILE) -> None:
        """Appends a group for people to RUN/samples.jsonl, or to another file that is thinned likewise."""
        await self.disk.write(self._append_thinned, name, line)

    def _append_thinned(self, name: str, line: Mapping[str, Any]) -> None:
        path = self.run_dir / name
        with self._appending:  # a line that is appended while the file is replaced would be lost
            append_line(path, line, synced=True)
            try:
                thinned = thin(path, most_bytes=self._most_bytes)
            except OSError as error:  # the line is written, and a file that is too large harms nobody yet
                log.warning("file_not_thinned", path=str(path), reason=str(error))
                return
        if thinned:
            log.info("file_thinned", path=str(path), most_bytes=self._most_bytes)

    async def find_row(self, wanted: str) -> dict[str, Any] | None:
        """The row of the group with this id or admission number in the ledger's files; None without such a row."""
        return await asyncio.to_thread(find_row, self.run_dir, wanted)

    async def ended_groups(self, *, after: int) -> AsyncIterator[list[dict[str, Any]]]:
        """The rows in files behind the first `after` rows, without lists, some thousand at once."""
        rows = _ended_groups(self.run_dir, after)
        while (some := await asyncio.to_thread(next, rows, None)) is not None:
            yield some

    async def outcomes(self, *, versions_since: int) -> AsyncIterator[list[dict[str, Any]]]:
        """See `recent_outcomes`; some thousand rows at once."""
        rows = recent_outcomes(self.run_dir, versions_since=versions_since)
        while (some := await asyncio.to_thread(next, rows, None)) is not None:
            yield some

    async def count_trained(self, *, since: int) -> tuple[int, int, int]:
        """How many rows are in files; of the groups trained in a step from `since` on, how many, and their tokens."""
        return await asyncio.to_thread(ledger_writer.count_trained, self.run_dir, since=since)

    async def ledger_rows(self) -> int:
        """Number of the rows in files."""
        return await asyncio.to_thread(ledger_writer.ledger_rows, self.run_dir)

    async def write_ledger(self, rows: Sequence[Mapping[str, Any]], *, after: int, most: int) -> None:
        """Writes the rows behind the first `after` rows, to a file of at most `most` rows; again without effect."""
        await self.disk.write(ledger_writer.write_rows, self.run_dir, rows, after=after, most=most)

    async def merge_ledger(self) -> None:
        """Makes one file of many small ones, where there are many."""
        await self.disk.write(ledger_writer.merge, self.run_dir)

    async def mark_rolled_back(self, *, since: int, fault: str) -> None:
        """Counts groups trained in a step from `since` on as `rollback`, in every file; replaces a file as a whole."""
        await self.disk.write(ledger_writer.mark_rolled_back, self.run_dir, since=since, fault=fault)

    def _batch_path(self, step: int) -> Path:
        return batch_path(self.run_dir, step)

    def _staged_path(self, step: int, digest: str) -> Path:
        return self._batch_path(step).with_suffix(f".{digest[:16]}.staged")


def _ended_groups(run_dir: Path, after: int) -> Iterator[list[dict[str, Any]]]:
    for part in open_parts(run_dir, after=after):
        with damage_skipped(part.path):
            for batch in part.batches(_ENDED):
                yield batch.to_pylist()


def _link(path: Path, name: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.link(path, name)
    sync(name.parent)
