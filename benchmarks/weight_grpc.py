"""Weights over gRPC against gloo: on loopback, and over a link of 1 Gbit/s and 40 ms, in the same run.

Source and receiver are processes of their own. A push is what a rollout waits for: opening, all buckets, and the digests over
what arrived. Both directions of the ratio are printed. The long link needs root (benchmarks/simulated/long_link.py).
"""

import base64
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import Row
from benchmarks.simulated.long_link import long_link
from sluice.telemetry.logs import configure_logs

TOTAL_BYTES = 256 << 20
MODEL_BYTES = 269_000_000
"""SmolLM2-135M in bfloat16."""
DELTA = 0.15
"""Share of the dense bytes that a delta may have at most, of a step of 16 updates at a learning rate of 1e-6 in bfloat16."""
STEP_S = 51.0
"""Seconds of a step of the demo with that model on two cores (docs/demo-llm.md: 20 steps in 17:03)."""
BUCKET_BYTES = 1 << 20
ROUNDS = 3
TIMEOUT_S = 60.0

RATE, DELAY_S = "1gbit", 0.02
LINE_BYTES_PER_S = 125e6


def run() -> list[Row]:
    """All rows; without root those of loopback alone."""
    with tempfile.TemporaryDirectory() as folder:
        from sluice.rpc.certificate_authority import make_certificates

        make_certificates(Path(folder), valid_for=datetime.timedelta(days=1))
        return [*_loopback(folder), *(_long(folder) if os.geteuid() == 0 else ())]


def _loopback(folder: str) -> list[Row]:
    kinds = {"gloo": ("gloo", ""), "gRPC": ("grpc", ""), "gRPC with certificates": ("grpc", folder)}
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    with ExitStack() as held:
        pushes = {kind: held.enter_context(_pair(*ends)) for kind, ends in kinds.items()}
        for _ in range(1 + ROUNDS):  # in turns, so that what else the machine does hits all alike
            for kind, push in pushes.items():
                times[kind].append(push(TOTAL_BYTES))
        times = {kind: taken[1:] for kind, taken in times.items()}  # the first push connects and touches the memory
    rates = {kind: TOTAL_BYTES / float(np.median(taken)) / 1e9 for kind, taken in times.items()}
    rows = [_row(f"loopback, {kind}", rate, "GB/s") for kind, rate in rates.items()]
    for kind in list(kinds)[1:]:
        rows.append(_row(f"loopback, {kind} / gloo", rates[kind] / rates["gloo"], ""))
        rows.append(_row(f"loopback, gloo / {kind}", rates["gloo"] / rates[kind], ""))
    return rows


def _long(folder: str) -> list[Row]:
    rows = []
    for send_bytes, kernel in ((4 << 20, "the kernel's default buffer"), (32 << 20, "tcp_wmem of 32 MiB")):
        with long_link(rate=RATE, delay_s=DELAY_S, send_bytes=send_bytes) as link:
            ends = {"near": link.command(link.near), "far": link.command(link.far), "address": link.near_address}
            for kind, (backend, credentials) in {"gloo": ("gloo", ""), "gRPC": ("grpc", folder)}.items():
                with _pair(backend, credentials, **ends) as push:
                    for what, size in (("dense", MODEL_BYTES), ("a delta", int(DELTA * MODEL_BYTES))):
                        taken_s = min(push(size) for _ in range(2))
                        name = f"{RATE}, {2e3 * DELAY_S:.0f} ms, {kernel}: {kind}, {what} of {size / 1e6:.0f} MB"
                        rows.append(_followed(name, taken_s) if kind == "gRPC" else _row(name, taken_s, "s"))
                        rows.append(_row(f"{name}, share of the line", size / taken_s / LINE_BYTES_PER_S, ""))
    return rows


def _followed(name: str, taken_s: float) -> Row:
    return Row(what=name, value=taken_s, unit="s", target=f"<= {STEP_S:g}, a step", met=taken_s <= STEP_S)


def _row(what: str, value: float, unit: str) -> Row:
    return Row(what=what, value=value, unit=unit, target="", met=True)


@contextmanager
def _pair(
    backend: str,
    credentials: str,
    *,
    near: tuple[str, ...] | list[str] = (),
    far: tuple[str, ...] | list[str] = (),
    address: str = "127.0.0.1",
) -> Iterator[Any]:
    """A function that pushes a version of so many bytes and returns its seconds."""
    source = _End([*near], "source", backend, credentials and f"{credentials}/learner", address)
    receiver = _End([*far], "receiver", backend, credentials and f"{credentials}/rollout", address)
    try:

        def push(size: int) -> float:
            source.ask({"publish": size})
            started = time.perf_counter()
            receiver.ask(source.ask({"publish": 0}))
            return time.perf_counter() - started

        yield push
    finally:
        source.end()
        receiver.end()


class _End:
    """A process of this file, which answers a line of JSON with another."""

    def __init__(self, prefix: list[str], *words: str) -> None:
        command = [*prefix, sys.executable, "-m", "benchmarks.weight_grpc", *words]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(order), file=self._process.stdin)
        return json.loads(self._process.stdout.readline())

    def end(self) -> None:
        self._process.communicate(timeout=TIMEOUT_S)


def _source(backend: str, folder: str, address: str) -> None:
    """A learner's end: publishes a version of so many bytes, or opens what was published, for every line."""
    from services.learner.control.thread import ControlThread
    from sluice.rpc.credentials import load_credentials
    from sluice.rpc.server import make_server
    from sluice.weights.sender import WeightSender
    from sluice.weights.streams import WeightStreams
    from sluice.weights.wire import manifest_to_proto, payload_to_proto

    sender = WeightSender(backend=backend, host=address, bind=address)  # type: ignore[arg-type]
    assert sender.links is not None
    thread, stack = ControlThread(), ExitStack()
    if backend == "grpc":
        streams = WeightStreams(sender.links.offered)
        credentials = load_credentials(folder) if folder else load_credentials(None)

        async def serve() -> Any:
            server = make_server(streams.add_to, services=[streams.name], credentials=credentials)
            server.credentials.check_listens(address)
            return server, await server.start(bind=address, port=0)

        server, sender.links.rpc_port = thread.call(serve())
        stack.callback(lambda: thread.close(lambda: server.stop(grace_s=0)))
    made: dict[int, Any] = {}
    for line in sys.stdin:
        if size := json.loads(line)["publish"]:
            made[size] = made.get(size) or _snapshot(size)
            sender.publish(made[size])
            print("{}", flush=True)
            continue
        opened = sender.open(rollout_id="r", epoch="e", timeout_s=TIMEOUT_S)
        assert opened.payload is not None
        facts = {
            "manifest": _text(manifest_to_proto(opened.manifest).SerializeToString()),
            "payload": _text(payload_to_proto(opened.payload).SerializeToString()),
            "port": opened.store_port,
            "secret": opened.secret,
            "new_epoch": opened.new_epoch,
        }
        print(json.dumps(facts), flush=True)
    stack.close()
    sender.close()


def _receiver(backend: str, folder: str, address: str) -> None:
    """A rollout's end: receives what every line says was opened."""
    from sluice.rpc.credentials import load_credentials
    from sluice.v1 import common_pb2
    from sluice.weights.backends import Rendezvous
    from sluice.weights.receiver import WeightReceiver
    from sluice.weights.wire import manifest_from_proto, payload_from_proto

    receiver = WeightReceiver(credentials=load_credentials(folder or None))
    for line in sys.stdin:
        facts = json.loads(line)
        if facts["new_epoch"]:
            where = Rendezvous(
                host=address,
                port=facts["port"],
                secret=facts["secret"],
                epoch="e",
                rank=1,
                world_size=2,
                timeout_s=TIMEOUT_S,
            )
            receiver.join(where, backend=backend)  # type: ignore[arg-type]
        manifest = manifest_from_proto(common_pb2.WeightManifest.FromString(base64.b64decode(facts["manifest"])))
        payload = payload_from_proto(common_pb2.WeightPayload.FromString(base64.b64decode(facts["payload"])), manifest)
        receiver.begin(epoch="e", manifest=manifest, payload=payload)
        receiver.recycle(receiver.result(timeout_s=10 * TIMEOUT_S))
        print(json.dumps({"done": True}), flush=True)
    receiver.close()


def _snapshot(size: int) -> Any:
    from sluice.policy_version import PolicyVersion
    from sluice.weights.manifest import plan
    from sluice.weights.snapshot import Packer

    packer = Packer(plan([("weight", "float32", (size // 4,))], bucket_bytes=BUCKET_BYTES))
    packer.put("weight", np.random.default_rng(0).integers(0, 255, size // 4 * 4, np.uint8))
    return packer.seal(PolicyVersion(lineage="a", number=1))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


if __name__ == "__main__":
    configure_logs(service="benchmark", level="error")
    {"source": _source, "receiver": _receiver}[sys.argv[1]](*sys.argv[2:])
