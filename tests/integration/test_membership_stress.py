"""Rollouts that die and come back at random, for many epochs, while new versions appear: the sender stays as it was."""

import ctypes
import gc
import os
import random
import threading
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from sluice.weights.sender import KEPT_VERSIONS, WeightSender
from tests.integration.weight_cases import random_snapshot
from tests.integration.weight_processes import ANSWER_S, ReceiverProcess

SNAPSHOT_BYTES = 1 << 20
"""16 buckets."""

RECEIVERS = 4
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What this process, the sender's, uses when its receivers are idle."""

    threads: int
    descriptors: int
    resident_bytes: int


class Fleet:
    """A sender and its receivers, all of which are pushed every other version; some die of it."""

    def __init__(self, seed: int) -> None:
        self.sender = WeightSender(backend="gloo", host="127.0.0.1")
        self.receivers: dict[str, ReceiverProcess] = {}
        self.version = -1
        self._chance = random.Random(seed)
        self._names = (f"rollout-{number}" for number in count())
        for _ in range(RECEIVERS):
            self.join(next(self._names))

    def join(self, name: str) -> None:
        self.receivers[name] = ReceiverProcess(name)

    def publish(self) -> None:
        self.version += 1
        self.sender.publish(random_snapshot(self.version, total_bytes=SNAPSHOT_BYTES))

    def push_all(self, *, dying: str = "") -> None:
        """One push to everybody at once, and a newer version while it is under way; `dying` dies within a bucket."""
        self.publish()
        pushed = self.version
        for name, receiver in self.receivers.items():
            after = self._chance.randrange(1, 16)
            receiver.begin(self.sender, fault={"after": after, "signal": "SIGKILL"} if name == dying else None)
        self.publish()
        for name, receiver in self.receivers.items():
            if name == dying:
                with pytest.raises(EOFError):
                    receiver.outcome()
            else:
                outcome = receiver.outcome()
                if "error" in outcome:  # its former epoch had to end first: a fresh one is all it takes
                    outcome = receiver.push(self.sender)
                assert pushed <= outcome["applied"] <= self.version

    def epoch(self) -> None:
        """Somebody dies, idle or within a bucket; under the same name or another a new process joins."""
        victim = self._chance.choice(sorted(self.receivers))
        if self._chance.random() < 0.5:
            self.push_all(dying=victim)
            self.receivers.pop(victim).kill()
        else:
            self.receivers.pop(victim).kill()
            self.push_all()
        self.join(victim if self._chance.random() < 0.5 else next(self._names))
        self.push_all()

    def footprint(self) -> Footprint:
        """Once everybody who has gone is forgotten."""
        for _ in range(KEPT_VERSIONS):
            self.push_all()
        live = set(self.sender.links.threads().values())
        for thread in threading.enumerate():
            if thread.name.startswith("weights-") and thread not in live:
                thread.join(ANSWER_S)
                assert not thread.is_alive()
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what nobody holds any more counts for nothing, wherever in the heap it lay
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return Footprint(
            threads=sum(thread.name.startswith("weights-") for thread in threading.enumerate()),
            descriptors=len(os.listdir("/proc/self/fd")),
            resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        )

    def close(self) -> None:
        for receiver in self.receivers.values():
            receiver.kill()
        self.sender.close()


def live_through(epochs: int, *, measured_after: int, seed: int) -> None:
    fleet = Fleet(seed)
    try:
        for _ in range(measured_after):
            fleet.epoch()
        early = fleet.footprint()
        for _ in range(epochs - measured_after):
            fleet.epoch()
        late = fleet.footprint()
        print(f"early {early}, late {late}, versions {fleet.version}")
        fleet.publish()
        for receiver in fleet.receivers.values():
            assert receiver.push(fleet.sender) == {"applied": fleet.version}
        digest = random_snapshot(fleet.version, total_bytes=SNAPSHOT_BYTES).manifest.digest
        assert {receiver.serves() for receiver in fleet.receivers.values()} == {(fleet.version, digest)}
        assert early.threads == late.threads == RECEIVERS
        assert late.descriptors <= early.descriptors
        assert late.resident_bytes < early.resident_bytes + 8 * MIB
    finally:
        fleet.close()


@pytest.mark.integration
@pytest.mark.timeout(180)
def test_twenty_epochs_of_joins_and_deaths_leave_one_digest_and_no_trace() -> None:
    live_through(20, measured_after=4, seed=1)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [2, 3, 4])
def test_many_epochs_of_joins_and_deaths_leave_one_digest_and_no_trace(seed: int) -> None:
    live_through(300, measured_after=10, seed=seed)
