"""Which deltas a learner makes and keeps; the codec is real."""

import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sluice.policy_version import PolicyVersion
from sluice.weights import delta
from sluice.weights.deltas import Deltas, Held
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot

ELEMENTS = 4096
LAYOUT = plan([("w", "bfloat16", [ELEMENTS])], bucket_bytes=64)
WAIT_S = 30.0


def version(number: int, *, noise: bool = False) -> Snapshot:
    """Every later version changes 40 elements of the one before; with `noise` it changes all."""
    data = np.zeros(ELEMENTS, np.uint16)
    if noise:
        data = np.random.default_rng(number).integers(0, 1 << 16, ELEMENTS, np.uint16)
    for step in range(number):
        data[np.random.default_rng(step).integers(0, ELEMENTS, 40)] += 1
    packer = Packer(LAYOUT)
    packer.put("w", data)
    return packer.seal(PolicyVersion(lineage="a", number=number))


def held(snapshot: Snapshot) -> Held:
    return Held(version=snapshot.manifest.version, digest=snapshot.manifest.digest)


@pytest.fixture
def deltas() -> Iterator[Deltas]:
    made = Deltas(most_share=0.5)
    yield made
    made.close()


def settle(deltas: Deltas, snapshot: Snapshot) -> None:
    """Waits until the thread is done with a version that was published."""
    with deltas._changed:
        assert deltas._changed.wait_for(lambda: deltas._base is snapshot, WAIT_S)


def test_one_former_version_is_in_memory_only_while_the_delta_from_it_is_made(
    deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = version(0), version(1)
    alive = weakref.ref(first.buffer)
    deltas.publish(first)
    settle(deltas, first)
    deltas.publish(second)
    settle(deltas, second)
    assert alive() is not None
    made = deltas.cargo(held(first), second, wait_s=WAIT_S)
    again = deltas.cargo(held(first), second, wait_s=WAIT_S)
    assert made is not None
    assert made is again, "made once for all rollouts that hold it"
    assert (made.payload.base, made.payload.base_digest) == (first.manifest.version, first.manifest.digest)
    base = first.buffer.copy()
    del first
    assert alive() is None
    delta.apply(made.buffer.data, base, LAYOUT.tensors)
    assert (base == second.buffer).all()


def test_versions_that_come_faster_than_deltas_are_passed_over(deltas: Deltas, monkeypatch: pytest.MonkeyPatch) -> None:
    versions, may_go, begun, encode = [version(n) for n in range(4)], threading.Event(), threading.Event(), delta.encode

    def slow(*given: Any, **how: Any) -> bytes | None:
        begun.set()
        assert may_go.wait(WAIT_S)
        return encode(*given, **how)

    monkeypatch.setattr(delta, "encode", slow)
    deltas.publish(versions[0])
    settle(deltas, versions[0])
    deltas.publish(versions[1])
    assert begun.wait(WAIT_S)
    assert deltas.cargo(held(versions[0]), versions[1], wait_s=0.0) is None, "an open does not wait for ever"
    deltas.publish(versions[2])
    deltas.publish(versions[3])
    may_go.set()
    settle(deltas, versions[3])
    bases = [each.base.version.number for each in deltas._chain]
    assert bases == [0, 1]
    assert deltas.cargo(held(versions[2]), versions[3], wait_s=WAIT_S) is None
    chain = deltas.cargo(held(versions[0]), versions[3], wait_s=WAIT_S)
    assert chain is not None
    base = versions[0].buffer.copy()
    delta.apply(chain.buffer.data, base, LAYOUT.tensors)
    assert (base == versions[3].buffer).all()


def test_a_chain_forgets_its_oldest_deltas_and_ends_where_a_delta_is_too_long(
    deltas: Deltas, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delta, "MAX_CHAIN", 3)
    versions = [version(n) for n in range(6)]
    for each in versions:
        deltas.publish(each)
        settle(deltas, each)
    assert [each.base.version.number for each in deltas._chain] == [2, 3, 4]
    assert deltas.cargo(held(versions[1]), versions[5], wait_s=WAIT_S) is None
    noise = [version(n, noise=True) for n in range(6, 16)]
    tried = []
    for each in noise:
        deltas.publish(each)
        settle(deltas, each)
        tried.append(deltas._pass)
        assert not deltas._chain
    assert tried == [1, 0, 3, 2, 1, 0, 7, 6, 5, 4], "it is tried ever less often"


def test_closing_gives_up_the_delta_under_way(deltas: Deltas) -> None:
    deltas.publish(version(0))
    deltas.close()
    assert deltas.cargo(held(version(0)), version(1), wait_s=WAIT_S) is None
    deltas.publish(version(1))
    assert deltas._thread is not None
    assert not deltas._thread.is_alive()
