"""The files of a run that the coordinator writes: batches, metrics, samples, ledger rows. Writes leave the event loop.

RUN/batches/step-000012.groups   one batch, immutable: length-framed payloads (zstd, Group), as accepted
RUN/metrics.jsonl             a line a step and a line an evaluation
RUN/samples.jsonl             a few groups of each step, for reading
RUN/ledger/part-*.parquet     a row for every group that ended
"""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import blake3
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.errors import NotFound
from sluice.report.ledger_tables import damage_skipped, find_row, opened
from sluice.report.metrics import METRICS_FILE
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
from sluice.run_dir.durable import append_line, name_synced, sync, write_synced
from sluice.run_dir.ledger_schema import LEDGER_SCHEMA
from sluice.run_dir.private import make_private_folder

T = TypeVar("T")


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

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.follow: Callable[[Mapping[str, Any]], None] = lambda line: None
        """A callback for every written line of a step or an evaluation; must return at once."""
        for folder in ("batches", "ledger", "logs"):
            make_private_folder(run_dir / folder)

    async def keep_config(self, text: str) -> None:
        """Writes RUN/config.yaml, the resolved configuration of the last start. `sluice up` has written the file already.

        Then the names in RUN are on disk, the folders' among them.
        """

        def keep() -> None:
            path = self.run_dir / "config.yaml"
            if not path.exists() or path.read_text(encoding="utf-8") != text:
                write_synced(path, [text.encode()])
            sync(self.run_dir)

        await asyncio.to_thread(keep)

    async def stage_batch(self, step: int, *, payloads: Sequence[bytes]) -> BatchFile:
        """Writes and syncs batch `step` under a temporary name; `name_batch` makes the file the batch."""

        def staged() -> str:
            digest = digest_of(payloads)
            write_synced(self._staged_path(step, digest), frames(payloads))
            return digest

        return BatchFile(step=step, payloads=payloads, digest=await asyncio.to_thread(staged))

    async def name_batch(self, step: int, digest: str) -> None:
        """Makes the staged file of this digest batch `step`; does nothing when the file has its name already."""
        with contextlib.suppress(FileNotFoundError):
            await asyncio.to_thread(name_synced, self._staged_path(step, digest), self._batch_path(step))

    async def keep_poison(self, step: int, digest: str) -> Path:
        """Keeps batch `step` under a second name, which no later batch takes; returns the path."""
        path = poison_path(self.run_dir, step, digest)
        await asyncio.to_thread(_link, self._batch_path(step), path)
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
        return bool(self.batch_steps() or self._newest_part() or self.kept_checkpoints())

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
        await asyncio.to_thread(append_line, self.run_dir / name, line, synced=synced)

    async def append_metrics(self, line: Mapping[str, Any]) -> None:
        """Appends a line of a step or an evaluation to RUN/metrics.jsonl; on disk, because Redis's record follows."""
        await self.append(METRICS_FILE, line, synced=True)
        self.follow(line)

    async def find_row(self, wanted: str) -> dict[str, Any] | None:
        """The row of the group with this id or admission number in the ledger's files; None without such a row."""
        return await asyncio.to_thread(find_row, self.run_dir, wanted)

    async def ledger_parts(self, *, after: int) -> list[list[dict[str, Any]]]:
        """The rows in files behind the first `after` rows, file by file, without lists; a damaged file is skipped."""
        columns = ["group_id", "admission", "term", "step", "tokens", "lost_tokens"]

        def read() -> list[list[dict[str, Any]]]:
            parts: list[list[dict[str, Any]]] = []
            for path in sorted((self.run_dir / "ledger").glob("part-*.parquet")):
                with damage_skipped(path), opened(path) as file:
                    known = max(0, after - _first_row(path))
                    if known < file.metadata.num_rows:
                        parts.append(file.read(columns=columns).slice(known).to_pylist())
            return parts

        return await asyncio.to_thread(read)

    async def ledger_rows(self) -> int:
        """Number of the rows in files: where the newest file begins, and its rows."""

        def count() -> int:
            newest = self._newest_part()
            if newest is None:
                return 0
            with damage_skipped(newest), opened(newest) as file:
                return _first_row(newest) + file.metadata.num_rows
            return _first_row(newest)

        return await asyncio.to_thread(count)

    async def write_ledger(self, rows: Sequence[Mapping[str, Any]], *, after: int, most: int) -> None:
        """Writes the rows behind the first `after` rows; again without effect.

        They go to the newest file as long as it has no more than `most` rows, so that files are neither many nor large, and
        to a new one otherwise.
        """

        def write() -> None:
            table, path = (
                pa.Table.from_pylist([dict(row) for row in rows], schema=LEDGER_SCHEMA),
                self._ledger_path(after),
            )
            newest = self._newest_part()
            if newest is not None and _first_row(newest) < after and after - _first_row(newest) + len(rows) <= most:
                with damage_skipped(newest), opened(newest) as file:
                    table = pa.concat_tables([_as_now(file.read().slice(0, after - _first_row(newest))), table])
                    path = newest
            write_synced(path, [_parquet(table)])

        await asyncio.to_thread(write)

    def _newest_part(self) -> Path | None:
        return max((self.run_dir / "ledger").glob("part-*.parquet"), default=None)

    async def mark_rolled_back(self, *, since: int, fault: str) -> None:
        """Counts groups trained in a step from `since` on as `rollback`, in every file; replaces a file as a whole."""

        def mark() -> None:
            for path in sorted((self.run_dir / "ledger").glob("part-*.parquet")):
                with damage_skipped(path):
                    _mark(path, since=since, fault=fault)

        await asyncio.to_thread(mark)

    def _ledger_path(self, first_row: int) -> Path:
        return self.run_dir / "ledger" / f"part-{first_row:012d}.parquet"

    def _batch_path(self, step: int) -> Path:
        return batch_path(self.run_dir, step)

    def _staged_path(self, step: int, digest: str) -> Path:
        return self._batch_path(step).with_suffix(f".{digest[:16]}.staged")


def _mark(path: Path, *, since: int, fault: str) -> None:
    """`mark_rolled_back` for one file."""
    with opened(path) as file:
        ended = file.read(columns=["term", "step"]).to_pylist()
        given_up = [row["term"] == "trained" and row["step"] >= since for row in ended]
        if not any(given_up):
            return
        table = file.read()
    for name, value in (("term", "rollback"), ("fault", fault)):
        place = table.schema.get_field_index(name)
        if place < 0:  # an older file may have fewer columns
            continue
        was = table.column(place).to_pylist()
        values = [value if gone else old for gone, old in zip(given_up, was, strict=True)]
        table = table.set_column(place, table.schema.field(place), pa.array(values, pa.string()))
    write_synced(path, [_parquet(table)])


def _first_row(path: Path) -> int:
    """The number of rows in the files before this one, which is the file's name."""
    return int(path.stem.removeprefix("part-"))


def _as_now(table: pa.Table) -> pa.Table:
    """The table with every column of today's ledger: an older file may have fewer."""
    return pa.Table.from_pylist(table.to_pylist(), schema=LEDGER_SCHEMA)


def _parquet(table: pa.Table) -> bytes:
    body = pa.BufferOutputStream()
    pq.write_table(table, body, write_page_checksum=True)
    return body.getvalue().to_pybytes()


def _link(path: Path, name: Path) -> None:
    with contextlib.suppress(FileExistsError):
        os.link(path, name)
    sync(name.parent)
