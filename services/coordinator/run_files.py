"""The files of a run that the coordinator writes: batches, metrics, samples, ledger rows. Writes leave the event loop.

RUN/batches/step-000012.groups   one batch, immutable: length-framed payloads (zstd, Group), as accepted
RUN/metrics.jsonl             a line a step and a line an evaluation
RUN/samples.jsonl             a few groups of each step, for reading
RUN/ledger/part-*.parquet     a row for every group that ended
"""

import asyncio
import json
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3
import pyarrow as pa
import pyarrow.parquet as pq

from sluice.errors import NotFound

_FRAME = struct.Struct("<I")

LEDGER_SCHEMA = pa.schema(
    [
        ("group_id", pa.string()),
        ("admission", pa.int64()),
        ("prompt_id", pa.string()),
        ("attempt", pa.int32()),
        ("term", pa.string()),
        ("step", pa.int64()),
        ("oldest_version", pa.int64()),
        ("samples", pa.int32()),
        ("tokens", pa.int64()),
        ("acc_mean", pa.float64()),
        ("ended_s", pa.float64()),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchFile:
    """A batch as handed out."""

    step: int
    payloads: Sequence[bytes]
    """Groups as the codec encoded them, in admission order."""
    digest: str
    """blake3 over the framed payloads, hex."""


class RunFiles:
    """Everything under RUN that is the coordinator's."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        for folder in ("batches", "ledger", "logs"):
            (run_dir / folder).mkdir(parents=True, exist_ok=True)

    async def write_batch(self, step: int, *, ids: Sequence[str], payloads: Sequence[bytes]) -> BatchFile:
        """Writes batch `step` under a temporary name, syncs and renames."""
        body = b"".join(_FRAME.pack(len(payload)) + payload for payload in payloads)
        await asyncio.to_thread(_write_atomically, self._batch_path(step), body)
        return BatchFile(step=step, payloads=payloads, digest=blake3.blake3(body).hexdigest())

    async def read_batch(self, step: int) -> BatchFile:
        """Reads batch `step`. Raises NotFound when the file is gone."""
        path = self._batch_path(step)
        try:
            body = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError as error:
            raise NotFound(f"batch {step}: {path} is gone; it is kept while a checkpoint <= {step} exists") from error
        payloads, position = [], 0
        while position < len(body):
            (length,) = _FRAME.unpack_from(body, position)
            position += _FRAME.size
            payloads.append(body[position : position + length])
            position += length
        return BatchFile(step=step, payloads=payloads, digest=blake3.blake3(body).hexdigest())

    def drop_batches_before(self, step: int) -> None:
        """Removes batches that no kept checkpoint can ask for."""
        for path in (self.run_dir / "batches").glob("step-*.groups"):
            if int(path.stem.removeprefix("step-")) < step:
                path.unlink(missing_ok=True)

    def kept_checkpoints(self) -> list[int]:
        """Versions of the checkpoints there are, oldest first."""
        names = (folder.name.removeprefix("step-") for folder in (self.run_dir / "checkpoints").glob("step-*"))
        return sorted(int(name) for name in names if name.isdigit())

    async def append(self, name: str, line: Mapping[str, Any]) -> None:
        """Appends one JSON line to RUN/<name>."""
        text = json.dumps(line, separators=(",", ":"), ensure_ascii=False) + "\n"
        await asyncio.to_thread(_append, self.run_dir / name, text)

    async def write_ledger(self, rows: Sequence[Mapping[str, Any]], *, part: str) -> None:
        """Writes RUN/ledger/part-<part>.parquet; the same part written again replaces itself."""
        table = pa.Table.from_pylist([dict(row) for row in rows], schema=LEDGER_SCHEMA)
        path = self.run_dir / "ledger" / f"part-{part}.parquet"

        def write() -> None:
            pq.write_table(table, path.with_suffix(".tmp"))
            os.replace(path.with_suffix(".tmp"), path)

        await asyncio.to_thread(write)

    def _batch_path(self, step: int) -> Path:
        return self.run_dir / "batches" / f"step-{step:06d}.groups"


def _write_atomically(path: Path, body: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _append(path: Path, text: str) -> None:
    with path.open("ab+") as file:
        if file.tell() > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")  # a line torn by a kill stays alone
        file.write(text.encode())
