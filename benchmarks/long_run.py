"""What a run leaves behind in a simulated year, which is 1e7 groups, looked at after every tenth.

`python -m benchmarks.long_run --groups 1e7`; without the option 1e6, a quarter of an hour on 2 cores. Between two looks
benchmarks/simulated/history.py writes the past through the product's own writers (Redis with its append-only file synced
always, the ledger's files, metrics, samples, evaluations, checkpoints), because no machine generates 1e7 groups in an hour. At
each look the real coordinator is started on that past, with simulated rollouts, reward and learner around it; the learner
trains and commits a few batches and a checkpoint.

Measured: the seconds until the coordinator serves again and until the first batch after that, its memory, the memory and the
entries of Redis, number and bytes of the files. The ledger's bytes are counted apart: a row for every group is what the
ledger is for, and the rows of a written past are so alike that their bytes say nothing. What a single coordinator process
gathers in a year without a restart shows in `--live` batches only. At the end Redis is emptied: the coordinator then repairs
the whole run from the files and from what its learner says.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio as aioredis
import uvloop

from benchmarks.report import Row, show
from benchmarks.simulated.history import Pace, history, keep_checkpoint
from benchmarks.simulated.learner import whole_batch
from benchmarks.simulated.stage import Stage, stage
from sluice.config.schema import Config
from sluice.telemetry.logs import configure_logs
from sluice.testing.fakes import FakeLearner
from sluice.v1 import coordinator_pb2 as pb

GROUPS = 1_000_000
LOOKS = 10
LIVE_BATCHES = 3
PACE = Pace(batch=128)
RESTART_S = 30.0
GROWTH = 1.5
"""Most that may come between the first look at a tenth and the last."""
GROUPS_A_FILE = 50_000
"""Groups for which the run may have one more file."""
RPC_TIMEOUT_S = 60.0
ROLLOUTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One look at the run."""

    groups: int
    restart_s: float
    first_batch_s: float
    """From the moment the coordinator serves."""
    coordinator_mb: float
    peak_mb: float
    """The coordinator's largest memory."""
    redis_mb: float
    redis_entries: int
    files: int
    file_mb: float
    """Without the ledger."""
    ledger_mb: float

    def __str__(self) -> str:
        return (
            f"{self.groups:>10,} groups: restart {self.restart_s:.1f} s, first batch {self.first_batch_s:.1f} s, "
            f"coordinator {self.coordinator_mb:.0f} MB, Redis {self.redis_mb:.1f} MB in {self.redis_entries:,} entries, "
            f"{self.files} files of {self.file_mb:.0f} MB and a ledger of {self.ledger_mb:.0f} MB"
        )


def run(
    groups: int = GROUPS,
    *,
    looks: int = LOOKS,
    pace: Pace = PACE,
    live_batches: int = LIVE_BATCHES,
    tell: Callable[[str], None] = lambda line: print(line, flush=True),
) -> list[Row]:
    """Writes and looks; `tell` hears how far it is."""
    with tempfile.TemporaryDirectory(prefix="sluice-long-") as folder:
        *found, repaired = uvloop.run(_looks(Path(folder) / "stage", groups, looks, pace, live_batches, tell))
    return rows_of(found, repaired, file_max_mb=pace.file_max_bytes / 1e6)


def rows_of(found: Sequence[Look], repaired: Look, *, file_max_mb: float) -> list[Row]:
    """The last look, how it compares with the one after the first stretch of history, and the repair after it.

    `file_max_mb` is what metrics.jsonl, samples.jsonl and sample_tokens.jsonl may have each.
    """
    first, last = found[1], found[-1]
    files = last.files - first.files
    allowed = max(10.0, (last.groups - first.groups) / GROUPS_A_FILE)
    slowest = max(look.restart_s for look in found)
    rows = [
        Row(what="groups", value=last.groups, unit="", target="", met=True),
        Row(
            what="restart of the coordinator, slowest",
            value=slowest,
            unit="s",
            target=f"< {RESTART_S:.0f} s",
            met=slowest < RESTART_S,
        ),
        Row(what="restart of the coordinator, empty run", value=found[0].restart_s, unit="s", target="", met=True),
        Row(
            what="more files between first and last look",
            value=files,
            unit="",
            target=f"<= {allowed:.0f}",
            met=files <= allowed,
        ),
        Row(what="files, last", value=last.files, unit="", target="", met=True),
    ]
    for what, name in (
        ("coordinator's memory", "coordinator_mb"),
        ("Redis' memory", "redis_mb"),
    ):
        before, after = getattr(first, name), getattr(last, name)
        rows.append(Row(what=f"{what}, last", value=after, unit="MB", target="", met=True))
        rows.append(
            Row(
                what=f"{what}, last / first",
                value=after / before,
                unit="",
                target=f"<= {GROWTH}",
                met=after <= GROWTH * before,
            )
        )
    grown, largest, bound = repaired.peak_mb / last.peak_mb, max(look.file_mb for look in found), 3.3 * file_max_mb
    rows += [
        Row(
            what="files without the ledger, largest",
            value=largest,
            unit="MB",
            target=f"<= {bound:.1f} MB",
            met=largest <= bound,
        ),
        Row(
            what="repair of an emptied Redis, until the first batch",
            value=repaired.restart_s + repaired.first_batch_s,
            unit="s",
            target="",
            met=True,
        ),
        Row(
            what="coordinator's largest memory, in the repair / before",
            value=grown,
            unit="",
            target=f"<= {GROWTH}",
            met=grown <= GROWTH,
        ),
    ]
    return rows


async def _looks(
    folder: Path, groups: int, looks: int, pace: Pace, live_batches: int, tell: Callable[[str], None]
) -> list[Look]:
    found: list[Look] = []
    begun_s, learner = time.monotonic(), None
    async with stage(folder) as around:
        around.run_dir.mkdir()
        for number in range(looks + 1):
            until = groups * number // looks

            def progress(so_far: int, until: int = until) -> None:
                tell(f"{so_far:>10,} of {until:,} groups written, {time.monotonic() - begun_s:.0f} s")

            async with history(around.run_dir, around.redis_url, pace) as past:
                await past.write(until, tell=progress)
                steps, so_far = past.steps, past.admissions
            learner = FakeLearner(model=around.model)
            learner.version = steps
            found.append(await _look(around, pace, learner, groups=so_far, live_batches=live_batches))
            tell(str(found[-1]))
        assert learner is not None
        async with aioredis.Redis.from_url(around.redis_url) as connection:
            await connection.flushall()
        found.append(await _look(around, pace, learner, groups=so_far, live_batches=live_batches))
        tell(f"Redis emptied, and repaired: {found[-1]}")
    return found


async def _look(around: Stage, pace: Pace, learner: FakeLearner, *, groups: int, live_batches: int) -> Look:
    """Starts the coordinator, has some batches trained, and measures before it is stopped."""
    begun_s, steps = time.monotonic(), learner.version
    async with around.coordinator(_config(around.model, pace)):
        restart_s, serving_s = time.monotonic() - begun_s, time.monotonic()
        standing = await learner.join(around.address)
        try:
            async with around.fleet(ROLLOUTS, "--reward", "--median-tokens", str(pace.tokens)):
                first_batch_s = 0.0
                for step in range(steps, steps + live_batches):
                    batch = await whole_batch(learner, standing, step)
                    first_batch_s = first_batch_s or time.monotonic() - serving_s
                    await learner.commit(standing, step, batch)
            await _checkpoint(around, learner, standing)
        finally:
            await learner.stop()
        assert around.conductor is not None
        memory, peak = (_memory_mb(around.conductor.process.pid, name) for name in ("VmRSS", "VmHWM"))
        measured = await _redis(around.redis_url)
    files = await asyncio.to_thread(_files, around.run_dir)
    return Look(
        groups=groups,
        restart_s=restart_s,
        first_batch_s=first_batch_s,
        coordinator_mb=memory,
        peak_mb=peak,
        redis_mb=measured[0],
        redis_entries=measured[1],
        files=files[0],
        file_mb=files[1],
        ledger_mb=files[2],
    )


async def _checkpoint(around: Stage, learner: FakeLearner, standing: Any) -> None:
    path = await asyncio.to_thread(keep_checkpoint, around.run_dir, learner.version)
    request = pb.CommitCheckpointRequest(version=learner.holds(), path=str(path), fence=learner.fence)
    await standing.stub.CommitCheckpoint(request, timeout=RPC_TIMEOUT_S)


async def _redis(url: str) -> tuple[float, int]:
    """Megabytes in use, and the entries of all hashes, lists and streams."""
    async with aioredis.Redis.from_url(url) as connection:
        memory = await connection.info("memory")
        lengths: dict[Any, Any] = {b"hash": connection.hlen, b"list": connection.llen, b"stream": connection.xlen}
        entries = 0
        async for key in connection.scan_iter():
            length = lengths.get(await connection.type(key))
            entries += 1 if length is None else await length(key)
    return memory["used_memory"] / 1e6, entries


def _files(run_dir: Path) -> tuple[int, float, float]:
    """How many files, their megabytes without the ledger's, the ledger's megabytes."""
    number, rest, ledger = 0, 0, 0
    for folder, _, names in os.walk(run_dir):
        sizes = [os.stat(Path(folder) / name).st_size for name in names]
        number += len(names)
        if Path(folder).name == "ledger":
            ledger += sum(sizes)
        else:
            rest += sum(sizes)
    return number, rest / 1e6, ledger / 1e6


def _memory_mb(pid: int, name: str) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name)) * 1024 / 1e6


def _config(model: Path, pace: Pace) -> Config:
    return Config.model_validate(
        {
            "run": {"total_steps": 100_000_000, "file_max_bytes": pace.file_max_bytes},
            "model": {"path": str(model)},
            "data": {
                "train_files": ["mixadd3:train"],
                "train_batch_size": pace.batch,
                "max_prompt_length": 16,
                "max_response_length": pace.tokens,
                "template": "none",
            },
            "rollout": {"n": pace.samples},
            "coordinator": {"max_staleness": 1, "heartbeat_timeout_s": 60.0},
            "launch": {"check_reward": False},
            "eval": {"every_steps": 0},
        }
    )


def main() -> int:
    """Exit code 1 when a target was missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=float, default=float(GROUPS), help="groups in all (default: 1e6)")
    parser.add_argument("--looks", type=int, default=LOOKS, help="how often to look (default: every tenth)")
    parser.add_argument("--live", type=int, default=LIVE_BATCHES, help="batches trained by the real coordinator a look")
    args = parser.parse_args()
    configure_logs(service="benchmark", level="warning")
    rows = run(int(args.groups), looks=args.looks, live_batches=args.live)
    show("long_run", rows)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
