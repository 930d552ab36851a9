"""Redis is killed and comes back without its newest writes, or with none: the run goes on, and says what it repaired."""

import json
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import redis

from services.coordinator.storage.identity import IDENTITY_FILE
from services.coordinator.wire.messages import ZstdGroups
from sluice.launch.embedded_redis import find_server
from sluice.run_dir.batch_file import payloads_of
from sluice.testing import assert_eventually_blocking
from tests.chaos.plan import Victim
from tests.chaos.trial import Trial
from tests.chaos.victims import send

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(500)]

STEPS = 16
STRUCK_AFTER = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """What a Redis knows of the run."""

    admitted: int
    committed: set[int]

    @classmethod
    def of(cls, trial: Trial, socket: str) -> "Memory":
        keys = json.loads((trial.run_dir / IDENTITY_FILE).read_text())["keys"]
        with redis.Redis(unix_socket_path=socket, decode_responses=True) as client:
            prefix = f"sluice:{{{keys}}}:"
            commits: Any = client.hkeys(f"{prefix}commit")
            admissions: Any = client.hget(f"{prefix}meta", "admissions")
            return cls(admitted=int(admissions or 0), committed={int(step) for step in commits})


def groups_in_files(run_dir: Path) -> set[str]:
    """Groups that ended, by the ledger's files, and groups of batches, by the batch files."""
    codec = ZstdGroups()
    batches = {
        codec.decode(payload).group_id
        for path in (run_dir / "batches").glob("*.groups")
        for payload in payloads_of(path.read_bytes())
    }
    return batches | {row["group_id"] for row in pq.read_table(run_dir / "ledger").to_pylist()}


def kept_by(trial: Trial, scratch: Path) -> Memory:
    """What the embedded Redis has on disk, read by another server from a copy: its own lets in nobody without its password."""
    folder, socket = scratch / "copy", str(scratch / "copy.sock")
    shutil.copytree(trial.run_dir / "redis", folder)
    command = [find_server(), "--port", "0", "--unixsocket", socket, "--dir", str(folder), "--save", ""]
    with subprocess.Popen([*command, "--appendonly", "yes"], stdout=subprocess.DEVNULL) as server:
        try:
            assert_eventually_blocking(lambda: answers(socket), within_s=20)
            return Memory.of(trial, socket)
        finally:
            server.kill()
            server.wait()
            shutil.rmtree(folder)


def check(trial: Trial, *, before: Memory, after: Memory, in_files: set[str]) -> None:
    """The one line of repairs.jsonl is what files and Redis said when it came back."""
    (repair,) = map(json.loads, (trial.run_dir / "repairs.jsonl").read_text().splitlines())
    # Steps that Redis knew in its time; it keeps no records behind the oldest checkpoint.
    lost = set(range(max(after.committed, default=-1) + 1, max(before.committed) + 1))
    assert lost, "nothing was lost: this shows nothing"
    assert set(repair["trained_steps"]) | set(repair["assigned_steps"]) >= lost
    assert set(repair["trained_steps"]) <= lost
    assert repair["unknown_steps"] == []
    last = max(int(name.rpartition("-")[2]) for name in in_files)
    forgotten = {f"run-{number:07d}" for number in range(after.admitted, last + 1)}
    assert {group["group_id"] for group in repair["generated_again"]} == forgotten - in_files
    rows = {row["group_id"]: row for row in pq.read_table(trial.run_dir / "ledger").to_pylist()}
    for group in repair["generated_again"]:
        assert rows[group["group_id"]]["prompt_id"] == group["prompt_id"]


def test_the_embedded_redis_loses_the_end_of_its_append_only_file(start_trial, tmp_path: Path) -> None:
    with start_trial(f"run.total_steps={STEPS}", forgetful=True) as trial:
        trial.until(lambda: trial.steps() >= STRUCK_AFTER - 2, what=f"step {STRUCK_AFTER - 2}")
        (file,) = (trial.run_dir / "redis" / "appendonlydir").glob("*.incr.aof")
        kept_bytes = file.stat().st_size
        trial.until(lambda: trial.steps() >= STRUCK_AFTER, what=f"step {STRUCK_AFTER}")
        stopped = [trial.process(Victim.COORDINATOR), psutil.Process(trial.launcher.pid)]
        for process in stopped:
            send(process, signal.SIGSTOP)
        before, in_files = kept_by(trial, tmp_path), groups_in_files(trial.run_dir)
        server = trial.process(Victim.REDIS)
        send(server, signal.SIGKILL)
        with file.open("r+b") as opened:
            opened.truncate(kept_bytes)
        after = kept_by(trial, tmp_path)
        send(stopped[1], signal.SIGCONT)
        trial.until(lambda: trial.process(Victim.REDIS) != server, what="another Redis")
        send(stopped[0], signal.SIGCONT)
        trial.finish()
    check(trial, before=before, after=after, in_files=in_files)


def test_a_redis_of_ones_own_without_an_append_only_file_comes_back_empty(start_trial, tmp_path: Path) -> None:
    socket = str(tmp_path / "redis.sock")
    server = [find_server(), "--port", "0", "--unixsocket", socket, "--save", "", "--appendonly", "no"]
    with start_trial(
        f"run.total_steps={STEPS}", f"network.redis_url=unix://{socket}", forgetful=True, beside=lambda _: [server]
    ) as trial:
        trial.until(lambda: trial.steps() >= STRUCK_AFTER, what=f"step {STRUCK_AFTER}")
        coordinator = trial.process(Victim.COORDINATOR)
        send(coordinator, signal.SIGSTOP)
        before, in_files = Memory.of(trial, socket), groups_in_files(trial.run_dir)
        send(trial.process(Victim.REDIS), signal.SIGKILL)
        trial.start_beside(server)
        trial.until(lambda: answers(socket), what="another Redis")
        after = Memory.of(trial, socket)
        assert after == Memory(admitted=0, committed=set())
        send(coordinator, signal.SIGCONT)
        trial.finish()
    check(trial, before=before, after=after, in_files=in_files)


def answers(socket: str) -> bool:
    try:
        with redis.Redis(unix_socket_path=socket) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False
