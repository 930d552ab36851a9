"""Both ends of a weight transfer as processes, which can be told to signal themselves in the middle of one.

They are forked (tests/forked.py), so that one starts in milliseconds. Orders and
answers are JSON on a pipe; an end whose pipe closes leaves.
"""

import contextlib
import json
import os
import signal
import uuid
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors

from sluice.errors import SluiceError, TransferError
from sluice.rpc.credentials import Credentials
from sluice.v1 import common_pb2
from sluice.weights import links as links_module
from sluice.weights import receiver as receiver_module
from sluice.weights import snapshot_files
from sluice.weights.backends import ROOT_RANK, Collective, Rendezvous, TransferGroup, join
from sluice.weights.deltas import Held
from sluice.weights.fetching import FetchedGroup
from sluice.weights.flights import Flight
from sluice.weights.manifest import new_digest
from sluice.weights.receiver import Received, WeightReceiver
from sluice.weights.sender import OpenedTransfer, WeightSender
from sluice.weights.wire import manifest_from_proto, manifest_to_proto, payload_from_proto, payload_to_proto
from tests.forked import FORKED
from tests.integration.weight_cases import random_snapshot, rendezvous
from tests.integration.weight_streams import serving

Backend = Literal["gloo", "nccl", "grpc", "file"]

OPERATION_S = 2.0
"""Limit of a join and of every bucket."""

ANSWER_S = 30.0
"""How long a test waits for an end at most: every deadline inside it, on a machine that is busy with other things."""


class Fault:
    """What an end does once it has moved `after` buckets: `act`, in place of the next one."""

    def __init__(self) -> None:
        self.after, self.act = -1, lambda: None

    def arm(self, after: int, act: Callable[[], None]) -> None:
        self.after, self.act = after, act

    def arm_signal(self, after: int, name: str) -> None:
        self.arm(after, lambda: os.kill(os.getpid(), signal.Signals[name]))

    def pass_bucket(self) -> None:
        self.after -= 1
        if self.after == -1:
            self.act()

    def joined(self, where: Rendezvous, *, backend: Collective) -> TransferGroup:
        """In place of `backends.join`: a group whose buckets pass here."""
        return _Faulty(join(where, backend=backend), self)

    def fetching(self, where: Rendezvous, *, credentials: Credentials) -> TransferGroup:
        """In place of `FetchedGroup`: the same over gRPC."""
        return _Faulty(FetchedGroup(where, credentials=credentials), self)


class _Faulty:
    def __init__(self, group: TransferGroup, fault: Fault) -> None:
        self._group, self._fault = group, fault

    def broadcast(self, data: np.ndarray, *, root: int = ROOT_RANK) -> None:
        if root == ROOT_RANK:
            self._fault.pass_bucket()
        self._group.broadcast(data, root=root)

    def start(self, data: np.ndarray, *, root: int = ROOT_RANK) -> Flight:
        if root == ROOT_RANK:
            self._fault.pass_bucket()
        return self._group.start(data, root=root)

    def rest(self) -> None:
        self._group.rest()

    def close(self) -> None:
        self._group.close()


def break_transfer() -> None:
    """An `act` for a sender that gives up between two buckets."""
    raise TransferError("this end gives up")


class Process:
    """An end in a process of its own."""

    def __init__(self, main: Callable[[Connection], None]) -> None:
        self._pipe, theirs = FORKED.Pipe()
        self._process = FORKED.Process(target=main, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def tell(self, **order: Any) -> None:
        self._pipe.send_bytes(json.dumps(order).encode())

    def answer(self) -> dict[str, Any]:
        """Raises EOFError when the process died instead."""
        assert self._pipe.poll(ANSWER_S), "no answer in time"
        return json.loads(self._pipe.recv_bytes())

    def ask(self, **order: Any) -> dict[str, Any]:
        self.tell(**order)
        return self.answer()

    def signal(self, name: str) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.Signals[name])

    def kill(self) -> None:
        self._process.kill()  # works on one that was stopped, too
        self._process.join(ANSWER_S)
        assert self._process.exitcode is not None
        self._pipe.close()


class ReceiverProcess(Process):
    """A rollout's end: `WeightReceiver`, and the bytes it holds as its weights."""

    def __init__(self, rollout_id: str) -> None:
        super().__init__(_receive_orders)
        self.rollout_id = rollout_id
        self.epoch = ""
        self.held: Held | None = None
        """What it has acknowledged, as the coordinator knows it."""
        self.opened: OpenedTransfer | None = None
        """The newest transfer to it that `begin` opened."""

    def begin(self, sender: WeightSender, *, fault: Mapping[str, Any] | None = None) -> None:
        """The coordinator's part of a push to it; `outcome` is the rest."""
        self.epoch = self.epoch or f"{self.rollout_id}.{uuid.uuid4().hex[:12]}"
        self.opened = sender.open(rollout_id=self.rollout_id, epoch=self.epoch, timeout_s=OPERATION_S, held=self.held)
        self.begin_opened(facts_of(self.opened), self.epoch, fault=fault)

    def begin_opened(self, opened: Mapping[str, Any], epoch: str, *, fault: Mapping[str, Any] | None = None) -> None:
        """As `begin`, for a transfer that was opened elsewhere."""
        self.tell(do="receive", opened=dict(opened), epoch=epoch, fault=dict(fault or {}))

    def outcome(self) -> dict[str, Any]:
        """`{"applied": number}` or `{"error": type, "text": message}`; after an error the next epoch is a fresh one."""
        answer = self.answer()
        if "error" in answer:
            self.epoch, self.held = "", None
        elif self.opened is not None:
            manifest = self.opened.manifest
            self.held = Held(version=manifest.version, digest=manifest.digest)
        return answer

    def push(self, sender: WeightSender) -> dict[str, Any]:
        self.begin(sender)
        return self.outcome()

    def serves(self) -> tuple[int, str]:
        """Number and digest of the weights it holds; the digest is computed now, over its bytes."""
        answer = self.ask(do="serves")
        return answer["number"], answer["digest"]


class SenderProcess(Process):
    """A learner's end that is to die."""

    def __init__(self) -> None:
        super().__init__(_send_orders)

    def open(self, rollout_id: str, epoch: str) -> dict[str, Any]:
        """An opened transfer, for `ReceiverProcess.begin_opened`."""
        return self.ask(do="open", rollout_id=rollout_id, epoch=epoch)

    def arm(self, *, after: int, signal: str) -> None:
        """Its fate: `signal` in place of a bucket (`file`: in the middle of the next file)."""
        self.ask(do="arm", after=after, signal=signal)


def facts_of(opened: OpenedTransfer) -> dict[str, Any]:
    """An opened transfer as JSON."""
    return {
        "manifest": manifest_to_proto(opened.manifest).SerializeToString().hex(),
        "payload": payload_to_proto(opened.payload).SerializeToString().hex() if opened.payload else None,
        "backend": opened.backend,
        "port": opened.store_port,
        "secret": opened.secret,
        "file_path": opened.file_path,
        "new_epoch": opened.new_epoch,
    }


def _orders(pipe: Connection) -> Any:
    while True:
        try:
            yield json.loads(pipe.recv_bytes())
        except EOFError:
            return


def _receive_orders(pipe: Connection) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = "1"  # NCCL refuses two ranks on one GPU; the sender takes the first
    fault, receiver, held = Fault(), WeightReceiver(keeps_base=True), None
    receiver_module.join = fault.joined  # type: ignore[assignment]
    receiver_module.FetchedGroup = fault.fetching  # type: ignore[assignment]
    read = snapshot_files.read_snapshot

    def read_or_fail(path: Path) -> Any:
        fault.pass_bucket()
        return read(path)

    snapshot_files.read_snapshot = read_or_fail  # type: ignore[assignment]
    for order in _orders(pipe):
        if order["do"] == "serves":
            assert held is not None
            hasher = new_digest(held.manifest.tensors)
            hasher.update(held.buffer.tobytes())
            answer = {"number": held.manifest.version.number, "digest": hasher.hexdigest()}
        else:
            if order["fault"]:
                is_file = order["opened"]["backend"] == "file"
                fault.arm_signal(0 if is_file else order["fault"]["after"], order["fault"]["signal"])
            try:
                held = _receive(receiver, order["opened"], order["epoch"])
                receiver.recycle(held)  # its bytes stay as they are while they are held
                answer = {"applied": held.manifest.version.number}
            except SluiceError as error:
                answer = {"error": type(error).__name__, "text": str(error)}
        pipe.send_bytes(json.dumps(answer).encode())
    receiver.close()


def _receive(receiver: WeightReceiver, opened: Mapping[str, Any], epoch: str) -> Received:
    if opened["new_epoch"] and opened["backend"] != "file":
        where = rendezvous(port=opened["port"], secret=opened["secret"], epoch=epoch, timeout_s=OPERATION_S)
        receiver.join(where, backend=opened["backend"])
    manifest = manifest_from_proto(common_pb2.WeightManifest.FromString(bytes.fromhex(opened["manifest"])))
    packed = opened["payload"]
    payload = packed and payload_from_proto(common_pb2.WeightPayload.FromString(bytes.fromhex(packed)), manifest)
    receiver.begin(epoch=epoch, manifest=manifest, payload=payload, file_path=opened["file_path"])
    return receiver.result(timeout_s=10 * OPERATION_S)


def _send_orders(pipe: Connection) -> None:
    fault = Fault()
    links_module.join = fault.joined  # type: ignore[assignment]
    write = safetensors.serialize_file

    def write_or_fail(tensors: Any, path: str, metadata: Any) -> None:
        if fault.after >= 0:
            Path(path).write_bytes(b"\0" * 100)
            fault.act()
        write(tensors, path, metadata)

    safetensors.serialize_file = write_or_fail
    sender, stack = None, contextlib.ExitStack()
    for order in _orders(pipe):
        answer: dict[str, Any] = {}
        if order["do"] == "make":
            sender = WeightSender(backend=order["backend"], host="127.0.0.1", directory=Path(order["directory"]))
            sender.publish(random_snapshot(order["number"]))
            if order["backend"] == "grpc":
                assert sender.links is not None
                stack.enter_context(serving(sender.links, passing=lambda _: fault.pass_bucket()))
        elif order["do"] == "arm":
            fault.arm_signal(order["after"], order["signal"])
        else:
            assert sender is not None
            answer = facts_of(sender.open(rollout_id=order["rollout_id"], epoch=order["epoch"], timeout_s=OPERATION_S))
        pipe.send_bytes(json.dumps(answer).encode())
