"""A payload's bytes on their way: only verified buckets are kept, and what was interrupted goes on."""

import threading

import numpy as np
import pytest

from sluice.errors import TransferError
from sluice.policy_version import PolicyVersion
from sluice.weights.cargo import Cargo
from sluice.weights.manifest import Manifest, new_digest, plan
from sluice.weights.payload import Payload, dense
from sluice.weights.payload import check as check_payload
from sluice.weights.snapshot import Packer, Snapshot
from sluice.weights.wire import payload_from_proto, payload_to_proto

BUCKETS = 4


def snapshot() -> Snapshot:
    """200 bytes in buckets of 64."""
    packer = Packer(plan([("w", "float32", (50,))], bucket_bytes=64))
    packer.put("w", np.random.default_rng(0).integers(0, 255, 200, np.uint8))
    return packer.seal(PolicyVersion(lineage="a", number=3))


SNAPSHOT = snapshot()
PAYLOAD = dense(SNAPSHOT.manifest, SNAPSHOT.buffer)


def empty() -> Cargo:
    return Cargo(PAYLOAD, np.zeros(200, np.uint8), hasher=new_digest(SNAPSHOT.manifest.tensors))


def bucket(number: int) -> np.ndarray:
    return SNAPSHOT.buffer[PAYLOAD.bounds(number)]


def test_buckets_are_taken_in_order_once_and_only_as_the_learner_made_them() -> None:
    hasher = new_digest(SNAPSHOT.manifest.tensors)
    cargo = Cargo(PAYLOAD, np.zeros(200, np.uint8), hasher=hasher)
    with pytest.raises(TransferError, match="bucket 1 of 4 comes too early"):
        cargo.accept(1, bucket(1))
    flipped = bucket(0).copy()
    flipped[5] ^= 1
    with pytest.raises(TransferError, match="bucket 0 of 4 has a digest other than the learner's"):
        cargo.accept(0, flipped)
    assert cargo.verified == 0
    assert not cargo.buffer.any()
    for number in (0, 0, 1, 2, 1, 3):
        cargo.accept(number, bucket(number))
    assert cargo.is_whole
    assert hasher.hexdigest() == SNAPSHOT.manifest.digest
    np.testing.assert_array_equal(cargo.buffer, SNAPSHOT.buffer)


def test_a_bucket_can_be_passed_on_before_the_next_one_is_there() -> None:
    cargo, passed = empty(), list[np.ndarray]()
    first = threading.Event()

    def relay() -> None:
        for number in range(BUCKETS):
            passed.append(cargo.wait(number, timeout_s=30.0).copy())
            first.set()

    thread = threading.Thread(target=relay)
    thread.start()
    cargo.accept(0, bucket(0))
    assert first.wait(30.0)
    for number in range(1, BUCKETS):
        cargo.accept(number, bucket(number))
    thread.join(30.0)
    np.testing.assert_array_equal(np.concatenate(passed), SNAPSHOT.buffer)


def test_a_bucket_that_never_comes_is_an_error_in_time_and_so_is_a_cargo_given_up() -> None:
    cargo = empty()
    with pytest.raises(TransferError, match=r"bucket 0 has not arrived here within 0\.01 s"):
        cargo.wait(0, timeout_s=0.01)
    cargo.accept(0, bucket(0))
    cargo.fail(TransferError("a3: given up"))
    assert cargo.wait(0, timeout_s=0.0).size == 64
    for late in (lambda: cargo.accept(1, bucket(1)), lambda: cargo.wait(1, timeout_s=30.0)):
        with pytest.raises(TransferError, match="given up"):
            late()


def test_a_payload_survives_the_wire_and_its_name_tells_payloads_apart() -> None:
    base = PolicyVersion(lineage="a", number=2)
    facts = {"total_bytes": 100, "bucket_bytes": 64, "bucket_digests": PAYLOAD.bucket_digests[:2]}
    delta = Payload(encoding="delta", base=base, base_digest="d", **facts)
    for payload in (PAYLOAD, delta):
        again = payload_from_proto(payload_to_proto(payload), SNAPSHOT.manifest)
        assert again == payload
        assert again.id == payload.id
    other = Payload(encoding="delta", base=base, base_digest="e", **facts)
    assert len({PAYLOAD.id, delta.id, other.id}) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"encoding": "sparse"}, "encoding must be one of dense, delta, got 'sparse'"),
        ({"bucket_bytes": 0}, "bucket_bytes must be > 0"),
        ({"total_bytes": 199}, "dense, so 200 bytes long, got 199"),
        ({"encoding": "delta", "total_bytes": 201}, "at most 200 bytes long"),
        ({"encoding": "delta"}, "a delta names its base"),
        ({"base": PolicyVersion(lineage="a", number=2)}, "a delta names its base"),
        ({"bucket_digests": PAYLOAD.bucket_digests[:3]}, "needs 4 digests of 32 bytes, got 3"),
        ({"bucket_digests": (b"short",) * 4}, "needs 4 digests of 32 bytes"),
    ],
)
def test_a_payload_that_cannot_be_of_the_version_is_refused(changes: dict, said: str) -> None:
    with pytest.raises(TransferError, match=said):
        check_payload(replaced(PAYLOAD, **changes), manifest())


def replaced(payload: Payload, **changes: object) -> Payload:
    facts = ("encoding", "total_bytes", "bucket_bytes", "bucket_digests", "base", "base_digest")
    return Payload(**{name: changes.get(name, getattr(payload, name)) for name in facts})  # type: ignore[arg-type]


def manifest() -> Manifest:
    return SNAPSHOT.manifest
