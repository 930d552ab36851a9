"""A rollout as a process of its own: all of the service but a model, over real gRPC, with faults to order in what it sends.

Its engine keeps the digest of what it was given. The process may stand in a machine of a rack (tests/rack.py).
"""

import asyncio
import contextlib
import ctypes
import gc
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np

from services.rollout.engine_loop import EngineLoop
from services.rollout.model_files import ModelFacts
from services.rollout.servicer import RolloutServicer
from services.rollout.weight_intake import WeightIntake
from services.rollout.weight_relay import WeightRelay
from sluice.rpc.access import Role
from sluice.rpc.credentials import load_credentials
from sluice.rpc.server import make_server
from sluice.v1 import rollout_pb2_grpc
from sluice.weights import links as links_module
from sluice.weights import receiver as receiver_module
from sluice.weights.backends import ROOT_RANK, Collective, Rendezvous, TransferGroup, join
from sluice.weights.flights import Flight
from sluice.weights.manifest import Manifest, new_digest
from sluice.weights.receiver import WeightReceiver
from tests.forked import FORKED
from tests.rack import enter
from tests.unit.rollout.fake_engine import FakeEngine

FORKED.set_forkserver_preload(["tests.forked_imports", __name__])
"""Where no other test has forked before, the imports of this file are made once for all rollouts."""

ANSWER_S = 60.0
"""How long a test waits for a process at most, on a machine that is busy with other things."""


class RolloutProcess:
    """The process, seen by the test."""

    def __init__(self, name: str, *, credentials: Path, total_bytes: int, address: str, machine: str = "") -> None:
        """Serves at `address`, of `machine` if it is a rack's. `started` says when it does."""
        self.name = name
        self._pipe, theirs = FORKED.Pipe()
        words = (theirs, str(credentials), total_bytes, address, machine)
        self._process = FORKED.Process(target=_main, args=words, daemon=True)
        self._process.start()
        theirs.close()

    def started(self) -> str:
        """Its address, once it serves."""
        return self._answer()["address"]

    def order_fault(self, after: int, what: str) -> None:
        """`what` happens in place of the bucket that it sends after `after` others: SIGKILL, SIGSTOP, lie, or seconds."""
        self.ask(fault=what, after=after)

    def serves(self) -> tuple[int, str]:
        """Number and digest of its engine's weights."""
        answer = self.ask()
        return answer["number"], answer["digest"]

    def took(self) -> int:
        """How many buckets it has received since it was asked last, whatever became of them."""
        return self.ask(forget=True)["took"]

    def footprint(self) -> dict[str, int]:
        """What it uses: `threads` that move weights, open `files`, `resident_bytes`."""
        return self.ask(footprint=True)["uses"]

    def ask(self, **order: Any) -> dict[str, Any]:
        self._pipe.send_bytes(json.dumps(order).encode())
        return self._answer()

    def signal(self, name: str) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.Signals[name])

    def kill(self) -> None:
        self._process.kill()  # works on one that was stopped, too
        self._process.join(ANSWER_S)
        assert self._process.exitcode is not None
        self._pipe.close()

    def _answer(self) -> dict[str, Any]:
        assert self._pipe.poll(ANSWER_S), f"{self.name}: no answer in time"
        return json.loads(self._pipe.recv_bytes())


class _Engine(FakeEngine):
    """Notes what it was given."""

    digest = ""

    def load_weights(self, manifest: Manifest, buffer: np.ndarray, *, recompute_kv: bool) -> None:
        super().load_weights(manifest, buffer, recompute_kv=recompute_kv)
        hasher = new_digest(manifest.tensors)
        hasher.update(buffer.data)
        self.digest = hasher.hexdigest()


class _Fault:
    """What happens to one bucket on its way out."""

    def __init__(self) -> None:
        self.after, self.what = -1, ""
        self.took = 0
        """Buckets that came in."""

    def pass_bucket(self, data: np.ndarray) -> np.ndarray:
        self.after -= 1
        if self.after >= 0 or not self.what:
            return data
        if self.what.startswith("SIG"):
            what, self.what = self.what, ""
            os.kill(os.getpid(), signal.Signals[what])
        elif self.what == "lie":
            data = data ^ np.uint8(1)
        else:
            time.sleep(float(self.what))
        return data

    def joined(self, where: Rendezvous, *, backend: Collective) -> TransferGroup:
        """In place of `backends.join`: a group whose buckets pass here."""
        return _Faulty(join(where, backend=backend), self, sends=where.rank == ROOT_RANK)


class _Faulty:
    def __init__(self, group: TransferGroup, fault: _Fault, *, sends: bool) -> None:
        self._group, self._fault, self._sends = group, fault, sends

    def broadcast(self, data: np.ndarray, *, root: int = ROOT_RANK) -> None:
        self.start(data, root=root).wait()

    def start(self, data: np.ndarray, *, root: int = ROOT_RANK) -> Flight:
        if root != ROOT_RANK:
            return self._group.start(data, root=root)
        if self._sends:
            data = self._fault.pass_bucket(data)
        return _Counted(self._group.start(data), data, None if self._sends else self._fault)

    def rest(self) -> None:
        self._group.rest()

    def close(self) -> None:
        self._group.close()


@dataclass(frozen=True, slots=True)
class _Counted:
    """A flight whose bucket counts where it comes in."""

    flight: Flight
    data: np.ndarray
    """Must stay until the flight has ended."""
    fault: _Fault | None

    def wait(self) -> None:
        self.flight.wait()
        if self.fault is not None:
            self.fault.took += 1


def _main(pipe: Connection, credentials: str, total_bytes: int, address: str, machine: str) -> None:
    if machine:
        enter(machine)
    asyncio.run(_serve(pipe, credentials, total_bytes, address))


async def _serve(pipe: Connection, credentials: str, total_bytes: int, address: str) -> None:
    fault, engine, receiver = _Fault(), _Engine(), WeightReceiver(keeps_base=True)
    links_module.join = receiver_module.join = fault.joined  # type: ignore[assignment]
    loop = EngineLoop(engine, max_samples=64)
    loop.start()
    model = ModelFacts(
        path=Path("unused"),
        vocab_size=1,
        max_position_embeddings=1,
        end_token_ids=frozenset(),
        model_hash="",
        tokenizer_hash="",
        tensors={"weight": (total_bytes // 4,)},
    )
    relay = WeightRelay(receiver, backend="auto", host=address, bind=address, device="cpu")
    intake = WeightIntake(loop=loop, receiver=receiver, model=model, inflight="keep", relay=relay)
    servicer = RolloutServicer(loop=loop, weights=intake, model=model, decode=str, rollout_id=lambda: "-")

    def register(server: grpc.aio.Server) -> None:
        rollout_pb2_grpc.add_RolloutServiceServicer_to_server(servicer, server)

    shown = load_credentials(credentials, role=Role.ROLLOUT)
    server = make_server(register, services=["sluice.v1.RolloutService"], credentials=shown)
    port = await server.start(bind=address, port=0)
    pipe.send_bytes(json.dumps({"address": f"{address}:{port}"}).encode())
    with contextlib.suppress(EOFError):
        while True:
            order = json.loads(await asyncio.to_thread(pipe.recv_bytes))
            if "fault" in order:
                fault.after, fault.what = order["after"], order["fault"]
            answer = {
                "number": -1 if engine.version is None else engine.version.number,
                "digest": engine.digest,
                "took": fault.took,
                "uses": _footprint() if "footprint" in order else {},
            }
            fault.took = 0 if "forget" in order else fault.took
            pipe.send_bytes(json.dumps(answer).encode())
    await server.stop(grace_s=0.0)
    await asyncio.to_thread(intake.close)
    loop.close()


def _footprint() -> dict[str, int]:
    """What this process uses: threads that move weights, open files, memory in bytes."""
    gc.collect()
    cast(Callable[[int], int], ctypes.CDLL(None).malloc_trim)(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "threads": sum(thread.name.startswith("weights-") for thread in threading.enumerate()),
        "files": len(os.listdir("/proc/self/fd")),
        "resident_bytes": pages * os.sysconf("SC_PAGE_SIZE"),
    }
