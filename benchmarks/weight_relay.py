"""A push to 16 rollouts behind one narrow link: in a chain, by pairs, and to one rollout alone; then the sums for 512.

Measured: real gloo between 17 processes, each rollout in a network namespace of its own, all of them behind one cable of
LINK_MBIT from the learner (tests/rack.py: root, iproute2). The push is the coordinator's own; rollouts lack a model. On
paper: the same push with what a bucket was measured to cost without a network, for fleets that no machine here holds.
"""

import asyncio
import os
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path

from benchmarks.relay_parts.model import BucketCosts, push_s
from benchmarks.report import Row
from services.coordinator.weights.plan import Receiver, plan_sources

ROLLOUTS = 16
LINK_MBIT = 10.0
TOTAL_BYTES = 2 << 20
"""Chosen with LINK_MBIT: the link is what takes time, not the few cores that 17 processes share."""
ROUNDS = 3
TARGET = 1.5

BUCKET_BYTES = 1 << 20
"""The default of weights.bucket_bytes; over the narrow link buckets have 64 KiB, as its payload is small."""
LOCAL_BYTES = 64 << 20

MODEL_BYTES = 65_500_000_000
"""32 B weights in bfloat16."""
NETWORK_BYTES_PER_S, MEMORY_BYTES_PER_S = 50e9, 20e9
"""Of a node's network card (400 Gbit/s), and between two processes of a machine: rates of the parts, not measured here."""
ROLLOUTS_A_HOST = 8


def run() -> list[Row]:
    """What was measured, then what was computed."""
    bucket_s = asyncio.run(_bucket_s())
    what = f"a bucket of {BUCKET_BYTES >> 20} MiB between two processes of this machine, with its digests"
    measured = [Row(what=what, value=1e3 * bucket_s, unit="ms", target="", met=True)]
    return measured + asyncio.run(_behind_a_narrow_link()) + _on_paper(bucket_s / BUCKET_BYTES)


async def _bucket_s() -> float:
    """Seconds a bucket of a push between two processes of this machine; of some pushes the one that was disturbed least."""
    from tests.integration.relay_fleet import RelayFleet

    with tempfile.TemporaryDirectory() as folder:
        fleet = RelayFleet(Path(folder), total_bytes=LOCAL_BYTES, bucket_bytes=BUCKET_BYTES)
        async with fleet.standing():
            await fleet.add("r")
            times_ms = [await fleet.push_ms() for _ in range(1 + ROUNDS)][1:]
    return min(times_ms) / 1e3 / (LOCAL_BYTES // BUCKET_BYTES)


async def _behind_a_narrow_link() -> list[Row]:
    if os.geteuid() != 0:
        print("no network namespaces without root: the push over a narrow link is left out")
        return []
    alone_ms, _ = await _pushes(1, relay="auto", rounds=ROUNDS)
    chain_ms, chain_bytes = await _pushes(ROLLOUTS, relay="auto", rounds=ROUNDS)
    pairs_ms, pairs_bytes = await _pushes(ROLLOUTS, relay="off", rounds=1)
    what = f"{TOTAL_BYTES >> 20} MiB over {LINK_MBIT:g} Mbit/s"
    ratio = chain_ms / alone_ms
    return [
        Row(what=f"push to 1 rollout, {what}", value=alone_ms, unit="ms", target="", met=True),
        Row(what=f"push to {ROLLOUTS}, relayed", value=chain_ms, unit="ms", target="", met=True),
        Row(what=f"push to {ROLLOUTS}, from the learner", value=pairs_ms, unit="ms", target="", met=True),
        Row(what=f"{ROLLOUTS} relayed / 1", value=ratio, unit="", target=f"<= {TARGET}", met=ratio <= TARGET),
        Row(what=f"{ROLLOUTS} from the learner / 1", value=pairs_ms / alone_ms, unit="", target="", met=True),
        Row(
            what="bytes over the link / payload, relayed",
            value=chain_bytes,
            unit="",
            target="<= 1.2",
            met=chain_bytes <= 1.2,
        ),
        Row(what="bytes over the link / payload, pairs", value=pairs_bytes, unit="", target="", met=True),
    ]


async def _pushes(rollouts: int, *, relay: str, rounds: int) -> tuple[float, float]:
    """The median push in ms until the last rollout has applied, and bytes over the link a push / bytes of the payload."""
    from tests.integration.relay_fleet import RelayFleet
    from tests.rack import rack

    with tempfile.TemporaryDirectory() as folder, rack(rollouts, megabit_per_s=LINK_MBIT) as made:
        fleet = RelayFleet(Path(folder), rack=made, total_bytes=TOTAL_BYTES, relay=relay, timeout_s=30.0)
        async with fleet.standing():
            await fleet.add(*made.machines)
            await fleet.push_ms()  # meets, and touches the memory
            before = made.sent_bytes()
            times_ms = [await fleet.push_ms() for _ in range(rounds)]
            return statistics.median(times_ms), (made.sent_bytes() - before) / rounds / TOTAL_BYTES


def _on_paper(handling_s_a_byte: float) -> list[Row]:
    """With receivers as slow as here, and with receivers that cost nothing, so that only links count."""
    rows = list[Row]()
    for receivers, handling_s in (("as here", handling_s_a_byte), ("that cost nothing", 0.0)):
        costs = BucketCosts(
            link_s=BUCKET_BYTES / NETWORK_BYTES_PER_S,
            local_s=BUCKET_BYTES / MEMORY_BYTES_PER_S,
            handling_s=BUCKET_BYTES * handling_s,
        )
        one_s = _paper_s(1, costs, pairs=False)
        for rollouts in (16, 64, 512):
            chain_s, pairs_s = _paper_s(rollouts, costs, pairs=False), _paper_s(rollouts, costs, pairs=True)
            ratio = chain_s / one_s
            what = f"on paper, {MODEL_BYTES / 1e9:g} GB to {rollouts} receivers {receivers}"
            rows += [
                Row(what=f"{what}, pairs", value=pairs_s, unit="s", target="", met=True),
                Row(what=f"{what}, relayed", value=chain_s, unit="s", target="", met=True),
            ]
            if handling_s:
                met = ratio <= TARGET
                rows.append(Row(what=f"{what}, relayed / 1", value=ratio, unit="", target=f"<= {TARGET}", met=met))
    return rows


def _paper_s(rollouts: int, costs: BucketCosts, *, pairs: bool) -> float:
    fleet = [Receiver(name=f"r{n:03}", host=f"h{n // ROLLOUTS_A_HOST:02}") for n in range(rollouts)]
    sources: Mapping[str, str] = plan_sources(fleet, root="learner", root_host="learner")
    hosts = {"learner": "learner"} | {receiver.name: receiver.host for receiver in fleet}
    if pairs:
        sources = dict.fromkeys(sources, "learner")
    buckets = -(-MODEL_BYTES // BUCKET_BYTES)
    return max(push_s(sources, hosts, root="learner", buckets=buckets, costs=costs).values())
