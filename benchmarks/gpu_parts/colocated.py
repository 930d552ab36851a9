"""Rollout and learner as two processes on one device: samples, a step, a push through host memory; three times.

The processes are the services' own parts without their RPCs: engine, receiver and sender, trainer and packer. The pair's
backend is what `weights.backend: auto` chooses for two processes on one device.
"""

import multiprocessing
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from benchmarks.gpu_parts.context import Context, Figure
from benchmarks.gpu_parts.learner import configuration, written_model
from services.learner.batches.batch import Batch, TrainGroup, TrainSequence
from services.learner.distributed.ranks import join_ranks
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.snapshot.pack import SnapshotPacker
from services.learner.training.train_step import Trainer
from services.rollout.engine import FinishedSample, SampleRequest
from services.rollout.model_files import read_model
from sluice.accelerator import identity
from sluice.policy_version import PolicyVersion
from sluice.weights.backends import Rendezvous
from sluice.weights.receiver import WeightReceiver
from sluice.weights.sender import WeightSender
from sluice.weights.snapshot import Snapshot

STEPS = 3
TIMEOUT_S = 30.0


def run(context: Context) -> Iterator[Figure]:
    """Times of push and stall, the mismatch at age 0, and what both hold of the device."""
    here, there = multiprocessing.Pipe()
    rollout = multiprocessing.get_context("fork").Process(target=_rollout, args=(context, there))
    rollout.start()  # before this process touches the device
    there.close()
    try:
        yield from _learner(context, here)
        here.send(None)
        rollout.join(TIMEOUT_S)
        assert rollout.exitcode == 0, f"the rollout's process ended with {rollout.exitcode}"
    finally:
        rollout.kill()
        rollout.join()


def _learner(context: Context, rollout: Connection) -> Iterator[Figure]:
    prompt, answer, n = (8, 6, 4) if context.small else (256, 128, 16)
    config = configuration(context, learner={"gradient_checkpointing": True, "lr": 1e-6})
    ranks = join_ranks()
    policy = load_policy(config, ranks)
    trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)
    packer = SnapshotPacker(policy=policy, config=config, ranks=ranks)
    sender = WeightSender(backend="auto", host="127.0.0.1", device=identity())
    other, ready_s = _answer(rollout)
    yield Figure(what="rollout ready, after the learner", value=ready_s, unit="s")
    yield Figure(what="both on one device", value=float(other == identity()), unit="")
    for step in range(STEPS):
        started = time.perf_counter()
        snapshot = packer.gather(PolicyVersion(lineage="a", number=step))
        assert snapshot is not None
        gathered = time.perf_counter()
        backend, stall_ms = _push(sender, snapshot, rollout, device=other)
        pushed = time.perf_counter()
        rollout.send(("draw", step, prompt, answer, n))
        samples, _ = _answer(rollout)
        drawn = time.perf_counter()
        metrics = trainer.train(_batch(step, samples))
        yield Figure(what=f"step {step}: gather", value=1e3 * (gathered - started), unit="ms")
        rate = snapshot.manifest.total_bytes / (pushed - gathered)
        yield context.compared(
            f"step {step}: push over {backend}", 1e3 * (pushed - gathered), "ms", ceiling="to_host", rate=rate
        )
        yield Figure(what=f"step {step}: stall", value=stall_ms, unit="ms")
        yield Figure(what=f"step {step}: rollout", value=n * answer / (drawn - pushed), unit="tokens/s")
        yield Figure(what=f"step {step}: train", value=1e3 * metrics["learner/train_s"], unit="ms")
        k3 = metrics["mismatch/k3_age0_nats"]
        yield Figure(
            what=f"step {step}: k3 at age 0, to be below 1e-3", value=k3, unit="nats", ratio=k3 / 1e-3, ratio_of="1e-3"
        )
    sender.close()


def _push(sender: WeightSender, snapshot: Snapshot, rollout: Connection, *, device: str) -> tuple[str, float]:
    """The coordinator's part of a push. Returns the backend and the rollout's stall in ms."""
    sender.publish(snapshot)
    opened = sender.open(rollout_id="r", epoch="only", timeout_s=TIMEOUT_S, receiver_device=device)
    where = None
    if opened.new_epoch:
        where = Rendezvous(
            host=opened.store_host, port=opened.store_port, secret=opened.secret, epoch="only", rank=1, world_size=2,
            timeout_s=TIMEOUT_S,
        )  # fmt: skip
    rollout.send(("take", where, opened.backend, opened.manifest, opened.payload))
    stall_ms, _ = _answer(rollout)
    return opened.backend, stall_ms


def _rollout(context: Context, learner: Connection) -> None:
    """The other process: an engine that takes versions and draws samples until it is told None."""
    from services.rollout.adapters.transformers_engine import TransformersEngine

    model = read_model(written_model(context))
    engine = TransformersEngine(model, dtype=context.dtype, max_model_len=1024, max_num_seqs=64)
    receiver = WeightReceiver()
    learner.send(identity())
    while (order := learner.recv()) is not None:
        if order[0] == "take":
            _, where, backend, manifest, payload = order
            if where is not None:
                receiver.join(where, backend=backend)
            receiver.begin(epoch="only", manifest=manifest, payload=payload)
            received = receiver.result(timeout_s=TIMEOUT_S)
            started = time.perf_counter()
            engine.load_weights(manifest, received.buffer, recompute_kv=False)
            learner.send(1e3 * (time.perf_counter() - started))
            receiver.recycle(received)
        else:
            learner.send(_drawn(engine, *order[1:]))
    receiver.close()
    engine.close()


def _drawn(engine: Any, step: int, prompt: int, answer: int, n: int) -> tuple[tuple[int, ...], list[FinishedSample]]:
    ids = tuple(map(int, np.random.default_rng(step).integers(1, 60, prompt)))
    for index in range(n):
        name = f"{step}-{index}-{secrets.token_hex(2)}"
        engine.add(SampleRequest(sample_id=name, prompt_token_ids=ids, seed=index, temperature=1.0, max_tokens=answer))
    done: list[FinishedSample] = []
    while engine.running:
        done += engine.step()
    return ids, [replace(sample, spans=()) for sample in done]


def _batch(step: int, drawn: tuple[tuple[int, ...], list[FinishedSample]]) -> Batch:
    ids, samples = drawn
    sequences = tuple(
        TrainSequence(
            token_ids=np.concatenate([np.array(ids, np.int32), sample.token_ids]),
            prompt_tokens=len(ids),
            rollout_logprobs=sample.logprobs,
            versions=np.full(len(sample.token_ids), step, np.int32),
            reward=float(index % 2),
            truncated=False,
        )
        for index, sample in enumerate(samples)
    )
    return Batch(step=step, digest=f"one-gpu-{step}", groups=(TrainGroup(group_id=f"g{step}", sequences=sequences),))


def _answer(rollout: Connection) -> tuple[Any, float]:
    """The rollout's answer, and the seconds until it came. Raises TimeoutError, or EOFError when its process has ended."""
    started = time.perf_counter()
    if not rollout.poll(2 * TIMEOUT_S):
        raise TimeoutError(f"the rollout's process said nothing for {2 * TIMEOUT_S:g} s")
    return rollout.recv(), time.perf_counter() - started
