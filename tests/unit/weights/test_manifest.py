"""Layout, digest, packing and files of snapshots."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import TransferError
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import ALIGN_BYTES, buckets, check, plan
from sluice.weights.snapshot import Packer, Snapshot
from sluice.weights.snapshot_files import read_snapshot, write_snapshot
from sluice.weights.wire import manifest_from_proto, manifest_to_proto

NAMED = [("b.weight", "float32", (3, 5)), ("a.weight", "bfloat16", (7,)), ("c.scale", "float16", ())]

shapes = st.lists(st.integers(0, 9), max_size=3).map(tuple)
models = st.dictionaries(
    st.text("abc.", min_size=1, max_size=6), st.tuples(st.sampled_from(["float32", "bfloat16"]), shapes), min_size=1
).map(lambda found: [(name, dtype, shape) for name, (dtype, shape) in found.items()])


def sealed(number: int = 3, *, bucket_bytes: int = 32) -> Snapshot:
    packer = Packer(plan(NAMED, bucket_bytes=bucket_bytes))
    packer.put("b.weight", np.arange(15, dtype=np.float32).reshape(3, 5))
    packer.put("a.weight", np.arange(14, dtype=np.uint8))
    packer.put("c.scale", np.array(0.5, np.float16))
    return packer.seal(PolicyVersion(lineage="a", number=number))


def test_tensors_lie_sorted_by_name_at_aligned_offsets() -> None:
    layout = plan(NAMED, bucket_bytes=32)
    places = [(spec.name, spec.offset_bytes, spec.size_bytes) for spec in layout.tensors]
    assert places == [("a.weight", 0, 14), ("b.weight", 64, 60), ("c.scale", 128, 2)]
    assert layout.total_bytes == 130


@given(models)
def test_no_two_tensors_overlap_and_the_order_given_does_not_matter(
    named: list[tuple[str, str, tuple[int, ...]]],
) -> None:
    layout = plan(named, bucket_bytes=64)
    assert layout == plan(named[::-1], bucket_bytes=64)
    assert all(spec.offset_bytes % ALIGN_BYTES == 0 for spec in layout.tensors)
    for before, after in itertools.pairwise(layout.tensors):
        assert before.name < after.name
        assert before.offset_bytes + before.size_bytes <= after.offset_bytes


@given(st.integers(0, 500), st.integers(1, 70))
def test_buckets_cover_the_buffer_once_and_in_order(total_bytes: int, bucket_bytes: int) -> None:
    parts = list(buckets(total_bytes, bucket_bytes))
    assert [index for part in parts for index in range(part.start, part.stop)] == list(range(total_bytes))
    assert all(part.stop - part.start == bucket_bytes for part in parts[:-1])


def test_the_digest_is_blake3_of_the_header_and_the_packed_bytes() -> None:
    snapshot = sealed()
    header = b'[["a.weight","bfloat16",[7]],["b.weight","float32",[3,5]],["c.scale","float16",[]]]'
    packed = np.zeros(130, np.uint8)
    packed[0:14] = np.arange(14)
    packed[64:124] = np.arange(15, dtype=np.float32).view(np.uint8)
    packed[128:130] = np.array([0.5], np.float16).view(np.uint8)
    assert bytes(snapshot.buffer) == bytes(packed)
    expected = blake3(len(header).to_bytes(8, "little") + header + bytes(packed))
    assert snapshot.manifest.digest == expected.hexdigest()


def test_the_digest_tells_bytes_apart_but_not_versions() -> None:
    assert sealed(3).manifest.digest == sealed(4).manifest.digest
    packer = Packer(plan([("b.weight", "float32", (5, 3))], bucket_bytes=32))
    packer.put("b.weight", np.arange(15, dtype=np.float32))
    reshaped = Packer(plan([("b.weight", "float32", (3, 5))], bucket_bytes=32))
    reshaped.put("b.weight", np.arange(15, dtype=np.float32))
    version = PolicyVersion(lineage="a", number=0)
    assert packer.seal(version).manifest.digest != reshaped.seal(version).manifest.digest


def test_a_snapshot_cannot_be_written() -> None:
    with pytest.raises(ValueError, match="read-only"):
        sealed().buffer[0] = 1


def test_every_tensor_comes_back_as_it_was_put() -> None:
    views = {spec.name: view for spec, view in sealed().tensors()}
    np.testing.assert_array_equal(views["b.weight"].view(np.float32).reshape(3, 5), np.arange(15).reshape(3, 5))


@pytest.mark.parametrize(
    ("named", "rule"),
    [
        ([], "at least one tensor"),
        ([("a", "float32", (1,)), ("a", "float32", (1,))], "a: appears twice"),
        ([("a", "int8", (1,))], "a: dtype must be one of float32, bfloat16, float16, got int8"),
        ([("a", "float32", (-1,))], "a: shape must be >= 0"),
    ],
)
def test_impossible_layouts_are_refused_by_name(named: list[tuple[str, str, tuple[int, ...]]], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        plan(named, bucket_bytes=32)


def test_the_packer_refuses_strangers_repetitions_and_gaps() -> None:
    packer = Packer(plan(NAMED, bucket_bytes=32))
    packer.put("c.scale", np.zeros((), np.float16))
    with pytest.raises(ValueError, match=r"c\.scale: not in the layout, or put twice"):
        packer.put("c.scale", np.zeros((), np.float16))
    with pytest.raises(ValueError, match=r"b\.weight: must have 60 bytes"):
        packer.put("b.weight", np.zeros(14, np.float32))
    with pytest.raises(ValueError, match=r"2 tensors were never put, first a\.weight"):
        packer.seal(PolicyVersion(lineage="a", number=0))


def test_a_manifest_survives_the_wire() -> None:
    manifest = sealed().manifest
    assert manifest_from_proto(manifest_to_proto(manifest)) == manifest


def test_a_manifest_whose_offsets_do_not_follow_is_refused() -> None:
    manifest = sealed().manifest
    moved = dataclasses.replace(manifest.tensors[1], offset_bytes=0)
    forged = dataclasses.replace(manifest, tensors=(manifest.tensors[0], moved, manifest.tensors[2]))
    with pytest.raises(TransferError, match="do not follow"):
        check(forged)


def test_a_snapshot_survives_a_file(tmp_path: Path) -> None:
    snapshot = sealed()
    path = write_snapshot(tmp_path, snapshot)
    assert path == write_snapshot(tmp_path, snapshot)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    back = read_snapshot(path)
    assert back.manifest == snapshot.manifest
    np.testing.assert_array_equal(back.buffer, snapshot.buffer)


def test_a_file_with_one_flipped_byte_is_refused(tmp_path: Path) -> None:
    path = write_snapshot(tmp_path, sealed())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(TransferError, match="digest"):
        read_snapshot(path)


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_torn_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = write_snapshot(tmp_path, sealed())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(TransferError, match="not a readable weight snapshot"):
        read_snapshot(path)
