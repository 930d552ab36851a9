"""What pushes cost training: the time of a step while every version is pushed to 4 and to 16 rollouts, over the time without.

The learner is the learner's own loop, trainer, packer and sender, one rank and one thread; the coordinator is a few lines that
hand out the same batch again and open a transfer for every receiver that is ready for one. Receivers are processes that only
receive, over gloo. On one machine they take cores that rollouts elsewhere would not take from the learner, so they run at the
lowest priority. Blocks of steps with and without pushes take turns; a block's figure is its median step.

`python -m benchmarks.run publish_overlap`; `python -m benchmarks.publish_overlap demo 4 2` measures one model with 4 receivers
in 2 pairs of blocks.
"""

import importlib
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from benchmarks.report import Row
from services.learner.batches.batch import Batch, TrainGroup, TrainSequence
from services.learner.checkpoint.training_record import TrainingRecord
from services.learner.checkpoint.training_state import CheckpointState
from services.learner.distributed.ending import end_process
from services.learner.distributed.ranks import join_ranks
from services.learner.loop import Leader
from services.learner.ports import NoBatch
from services.learner.rank_worker import Worker
from sluice.config.schema import Config
from sluice.lineage import FIRST, LineageBook
from sluice.policy_version import PolicyVersion
from sluice.run_dir.token_figures import TokenFigures
from sluice.telemetry.logs import configure_logs
from sluice.v1 import common_pb2
from sluice.weights.backends import Rendezvous
from sluice.weights.receiver import WeightReceiver
from sluice.weights.sender import WeightSender
from sluice.weights.snapshot import Snapshot
from sluice.weights.wire import manifest_from_proto, manifest_to_proto, payload_from_proto, payload_to_proto

TARGET = 1.05
RECEIVERS = (4, 16)
PAIRS, BLOCK_STEPS = 6, 5
WARM_UP_STEPS = 3
LIMIT_S = 60.0
WIDTHS = {
    "demo": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3},
    "50MB": {"hidden_size": 384, "intermediate_size": 1152, "num_hidden_layers": 6},
}
"""The demo's shape, and one of about 12 M float32 weights."""

GROUPS = {"demo": 20, "50MB": 4}
"""Of a batch: the demo's; for the larger model fewer, so that a step takes some seconds."""

SAMPLES, PROMPT, ANSWER = 8, 8, 48

_FORKED = multiprocessing.get_context("forkserver")
_FORKED.set_forkserver_preload(["benchmarks.publish_overlap"])


def run() -> list[Row]:
    """Each model and number of receivers in a process of its own."""
    rows = []
    for model in WIDTHS:
        for receivers in RECEIVERS:
            command = [sys.executable, "-m", "benchmarks.publish_overlap", model, str(receivers), str(PAIRS)]
            done = subprocess.run(
                command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.PIPE, text=True
            )
            rows += _rows(model, receivers, json.loads(done.stdout.splitlines()[-1]))
    return rows


def _rows(model: str, receivers: int, found: Mapping[str, float]) -> list[Row]:
    what = f"{model} ({found['mb']:.3g} MB), {receivers} receivers"
    ratio = found["ratio"]
    return [
        Row(what=f"{what}: step without pushes", value=1e3 * found["without_s"], unit="ms", target="", met=True),
        Row(what=f"{what}: learner/publish_s", value=1e3 * found["publish_s"], unit="ms", target="", met=True),
        Row(what=f"{what}: digest, beside the next step", value=found["digest_ms"], unit="ms", target="", met=True),
        Row(
            what=f"{what}: versions received a receiver and step", value=found["received"], unit="", target="", met=True
        ),
        Row(what=f"{what}: step with / without", value=ratio, unit="", target=f"<= {TARGET}", met=ratio <= TARGET),
    ]


class _Receiver:
    """A rollout's end: a process that receives what it is told to, and the epoch that it is in."""

    def __init__(self, number: int) -> None:
        self.name, self.received = f"r{number}", 0
        self._pipe, theirs = _FORKED.Pipe()
        # By its full name: in the server that forks, this file is not the main one.
        receive = importlib.import_module("benchmarks.publish_overlap").receive
        self._process = _FORKED.Process(target=receive, args=(theirs, f"{self.name}.epoch"), daemon=True)
        self._process.start()
        theirs.close()
        self._idle = threading.Event()
        self._idle.set()

    def is_ready(self) -> None:
        """Waits for the process to have started."""
        assert self._pipe.recv_bytes() == b"ready"

    def take(self, sender: WeightSender) -> None:
        """The coordinator's part of a push, unless the receiver is still at an older version: a late one skips."""
        if not self._idle.is_set():
            return
        self._idle.clear()
        opened = sender.open(rollout_id=self.name, epoch=f"{self.name}.epoch", timeout_s=LIMIT_S)
        assert opened.payload is not None
        order = {
            "port": opened.store_port,
            "secret": opened.secret,
            "new": opened.new_epoch,
            "manifest": manifest_to_proto(opened.manifest).SerializeToString().hex(),
            "payload": payload_to_proto(opened.payload).SerializeToString().hex(),
        }
        self._pipe.send_bytes(json.dumps(order).encode())
        threading.Thread(target=self._hear, daemon=True).start()

    def _hear(self) -> None:
        self._pipe.recv_bytes()
        self.received += 1
        self._idle.set()

    def settle(self) -> None:
        """Waits until the receiver is idle."""
        assert self._idle.wait(LIMIT_S), f"{self.name} has received nothing within {LIMIT_S:g} s"

    def end(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join(LIMIT_S)


class _Run:
    """Coordinator and publisher of the learner's loop: hands out batches, has versions pushed, keeps times."""

    stopping = checkpoint_wanted = False

    def __init__(self, batch: Batch, sender: WeightSender, receivers: Sequence[_Receiver], *, pairs: int) -> None:
        self._batch, self._sender, self._receivers = batch, sender, receivers
        self._with_pushes = [pushes for _ in range(pairs) for pushes in (False, True)]
        """By block."""
        self.steps = WARM_UP_STEPS + len(self._with_pushes) * BLOCK_STEPS
        self._booked, self._steps_booked = threading.Condition(), 0
        self._began, self._block = 0.0, list[float]()
        self.medians_s: dict[bool, list[float]] = {False: [], True: []}
        """The median step of each block, without and with pushes."""
        self.metrics: dict[str, list[float]] = {"learner/publish_s": [], "learner/digest_ms": []}

    def batch(self, step: int) -> Batch | NoBatch:
        """Coordinator.batch. A step lasts from one batch to the next; blocks begin with idle receivers."""
        if step > WARM_UP_STEPS:
            self._block.append(time.perf_counter() - self._began)
        if step >= WARM_UP_STEPS and (step - WARM_UP_STEPS) % BLOCK_STEPS == 0:
            if self._block:
                self.medians_s[self._pushed(step - 1)].append(statistics.median(self._block))
                self._block.clear()
            with self._booked:
                assert self._booked.wait_for(lambda: self._steps_booked == step, LIMIT_S)
            for receiver in self._receivers:
                receiver.settle()
        if step == self.steps:
            return NoBatch(reason="", ended=True)
        self._began = time.perf_counter()
        return replace(self._batch, step=step)

    def commit_step(
        self,
        batch: Batch,
        *,
        version: PolicyVersion,
        weights_digest: str,
        metrics: Mapping[str, float],
        example: TokenFigures | None,
    ) -> str:
        """Coordinator.commit_step."""
        if self._pushed(batch.step):
            for receiver in self._receivers:
                receiver.take(self._sender)
            for name, values in self.metrics.items():
                values.append(metrics[name])
        with self._booked:
            self._steps_booked = batch.step + 1
            self._booked.notify_all()
        return weights_digest

    def publish(self, snapshot: Snapshot) -> None:
        """Publisher.publish."""
        self._sender.publish(snapshot)

    def commit_checkpoint(self, version: PolicyVersion, path: Path) -> None:
        """Coordinator.commit_checkpoint."""

    def wake(self) -> None:
        """Coordinator.wake."""

    def checkpoint_begun(self) -> None:
        """Publisher.checkpoint_begun."""

    def checkpoint_saved(self, version: PolicyVersion, path: Path | None) -> None:
        """Publisher.checkpoint_saved."""

    def _pushed(self, step: int) -> bool:
        """Whether the version of this step is pushed; those of the warm-up are, so that all receivers have joined."""
        return step < WARM_UP_STEPS or self._with_pushes[(step - WARM_UP_STEPS) // BLOCK_STEPS]


def _measure(model: str, receivers: int, pairs: int) -> None:
    """Prints what was found as one line of JSON."""
    configure_logs(service="benchmark", level="warning")
    ends = [_Receiver(number) for number in range(receivers)]
    sender = WeightSender(backend="gloo", host="127.0.0.1")
    with tempfile.TemporaryDirectory() as folder:
        config = _config(_write_model(Path(folder) / "model", WIDTHS[model]), groups=GROUPS[model])
        ranks = join_ranks()
        torch.set_num_threads(1)
        worker = Worker(config=config, ranks=ranks, run_dir=Path(folder))
        snapshot = worker.gather(PolicyVersion(lineage=FIRST, number=0))
        assert snapshot is not None
        sender.publish(snapshot)
        for end in ends:
            end.is_ready()
        run = _Run(_batch(GROUPS[model]), sender, ends, pairs=pairs)
        leader = Leader(
            worker=worker,
            coordinator=run,
            publisher=run,
            lineages=LineageBook(Path(folder) / "lineages"),
            record=TrainingRecord(),
            state=CheckpointState(step=0, lineage=FIRST),
            snapshot=snapshot,
            checkpoint_every_steps=10_000,
            export=lambda _: None,
        )
        leader.run()
        worker.close()
    for end in ends:
        end.end()
    sender.close()
    without, pushed = run.medians_s[False], run.medians_s[True]
    found = {
        "mb": snapshot.manifest.total_bytes / 1e6,
        "without_s": statistics.median(without),
        "ratio": statistics.median(b / a for a, b in zip(without, pushed, strict=True)),
        "received": statistics.mean(end.received for end in ends) / len(run.metrics["learner/publish_s"]),
        **{name.removeprefix("learner/"): statistics.median(values) for name, values in run.metrics.items()},
    }
    print(json.dumps(found), flush=True)
    ranks.leave()


def receive(pipe: Connection, epoch: str) -> None:
    """A receiver's process: one version for every order on the pipe."""
    os.nice(19)
    receiver = WeightReceiver()
    pipe.send_bytes(b"ready")
    while True:
        try:
            order = json.loads(pipe.recv_bytes())
        except EOFError:
            break
        if order["new"]:
            where = Rendezvous(
                host="127.0.0.1",
                port=order["port"],
                secret=order["secret"],
                epoch=epoch,
                rank=1,
                world_size=2,
                timeout_s=LIMIT_S,
            )
            receiver.join(where, backend="gloo")
        manifest = manifest_from_proto(common_pb2.WeightManifest.FromString(bytes.fromhex(order["manifest"])))
        message = common_pb2.WeightPayload.FromString(bytes.fromhex(order["payload"]))
        receiver.begin(epoch=epoch, manifest=manifest, payload=payload_from_proto(message, manifest))
        receiver.recycle(receiver.result(timeout_s=LIMIT_S))
        pipe.send_bytes(b"received")
    receiver.close()


def _write_model(folder: Path, widths: Mapping[str, int]) -> Path:
    heads = {"num_attention_heads": widths["hidden_size"] // 32, "num_key_value_heads": widths["hidden_size"] // 32}
    model = Qwen3Config(
        vocab_size=1024, head_dim=32, max_position_embeddings=128, tie_word_embeddings=True, **widths, **heads
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(model).save_pretrained(folder)
    return folder


def _config(model: Path, *, groups: int) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(model), "dtype": "float32"},
            "data": {"train_files": ["none.jsonl"], "train_batch_size": groups, "max_response_length": ANSWER},
            "rollout": {"n": SAMPLES},
            "learner": {"mini_batch_size": groups // 2, "max_tokens_per_micro_batch": 8192, "resume": "never"},
        }
    )


def _batch(count: int) -> Batch:
    rng = np.random.default_rng(0)
    groups = []
    for number in range(count):
        prompt = rng.integers(0, 1024, PROMPT)
        sequences = tuple(
            TrainSequence(
                token_ids=np.concatenate([prompt, rng.integers(0, 1024, ANSWER)]).astype(np.int32),
                prompt_tokens=PROMPT,
                rollout_logprobs=rng.normal(-7.0, 0.1, ANSWER).astype(np.float32),
                versions=np.zeros(ANSWER, np.int32),
                reward=float(sample % 2),
                truncated=False,
            )
            for sample in range(SAMPLES)
        )
        groups.append(TrainGroup(group_id=f"g{number}", sequences=sequences))
    return Batch(step=0, digest="d", groups=tuple(groups))


if __name__ == "__main__":
    end_process(lambda: _measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
