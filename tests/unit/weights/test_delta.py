"""Deltas between two versions' packed bytes: exact to the bit, and refused or found out whatever is done to them."""

import itertools
import struct

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sluice.errors import TransferError
from sluice.weights import delta
from sluice.weights.manifest import Layout, new_digest, plan

MUCH = 1 << 30

NASTY = {2: (0x8000, 0x7FC1, 0xFF81, 0x0001, 0x7F80), 4: (0x80000000, 0x7FC00001, 0xFF800001, 0x00000001, 0x7F800000)}
"""-0.0, two NaNs with a payload, the smallest denormal, infinity."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a tensor of some hundred elements has several blocks, and gaps are long."""
    monkeypatch.setattr(delta, "BLOCK_ELEMENTS", 64)
    monkeypatch.setattr(delta, "GAP_ELEMENTS", 16)


layouts = st.lists(
    st.tuples(st.sampled_from(["float32", "bfloat16", "float16"]), st.integers(0, 200)), min_size=1, max_size=5
).map(lambda tensors: plan([(f"t{i}", dtype, [n]) for i, (dtype, n) in enumerate(tensors)], bucket_bytes=64))


def changed(layout: Layout, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Two versions of random bits; a `share` of the elements has other bits in the second, some of them nasty ones."""
    old = np.zeros(layout.total_bytes, np.uint8)
    for spec in layout.tensors:
        old[spec.offset_bytes : spec.offset_bytes + spec.size_bytes] = rng.integers(0, 256, spec.size_bytes, np.uint8)
    new = old.copy()
    for spec in layout.tensors:
        width = 4 if spec.dtype == "float32" else 2
        elements = new[spec.offset_bytes : spec.offset_bytes + spec.size_bytes].view(f"<u{width}")
        places = np.flatnonzero(rng.random(len(elements)) < share)
        bits = rng.integers(0, 1 << 8 * width, len(places), np.uint32).astype(elements.dtype)
        bits[::3] = rng.choice(np.array(NASTY[width], elements.dtype), len(bits[::3]))
        elements[places] = np.where(np.arange(len(places)) % 2, bits, elements[places] + 1)
    return old, new


def encoded(layout: Layout, old: np.ndarray, new: np.ndarray, *, threads: int = 1) -> bytes:
    made = delta.encode(old, new, layout.tensors, most_bytes=MUCH, threads=threads)
    assert made is not None
    return made


def applied(chain: bytes, base: np.ndarray, layout: Layout, *, threads: int = 1) -> np.ndarray:
    buffer = base.copy()
    delta.apply(chain, buffer, layout.tensors, threads=threads)
    return buffer


@settings(max_examples=50)
@given(layout=layouts, share=st.sampled_from([0.0, 0.005, 0.1, 0.5, 1.0]), seed=st.integers(0, 99))
def test_a_delta_brings_every_bit_whatever_has_changed(layout: Layout, share: float, seed: int) -> None:
    old, new = changed(layout, share, np.random.default_rng(seed))
    made = encoded(layout, old, new)
    assert (applied(made, old, layout) == new).all()
    assert made == encoded(layout, old, new, threads=3)
    assert (applied(made, old, layout, threads=3) == new).all()
    _, newer = changed(layout, share, np.random.default_rng(seed))
    newer[: layout.tensors[0].size_bytes] ^= 1
    assert (applied(made + encoded(layout, new, newer), old, layout) == newer).all(), "a chain"


LAYOUT = plan([("a", "bfloat16", [80]), ("b", "float32", [20]), ("c", "bfloat16", [3, 10])], bucket_bytes=64)


def test_whatever_byte_is_flipped_or_cut_is_refused_or_found_by_the_digest() -> None:
    old, new = changed(LAYOUT, 0.2, np.random.default_rng(7))
    made = encoded(LAYOUT, old, new)
    hasher = new_digest(LAYOUT.tensors)
    hasher.update(new.data)
    digest, refused, found_out = hasher.hexdigest(), 0, 0
    for place, mask in itertools.product(range(len(made)), (1, 0xC0)):
        bad = bytearray(made)
        bad[place] ^= mask
        try:
            result = applied(bytes(bad), old, LAYOUT)
        except TransferError:
            refused += 1
            continue
        found = new_digest(LAYOUT.tensors)
        found.update(result.data)
        found_out += found.hexdigest() != digest
        assert found.hexdigest() != digest or (result == new).all()
    assert refused > 100
    assert found_out > 100
    for length in range(len(made)):
        with pytest.raises(TransferError):
            applied(made[:length], old, LAYOUT)
    with pytest.raises(TransferError):
        applied(made + b"\0", old, LAYOUT)


def test_a_delta_for_other_tensors_is_refused() -> None:
    old, new = changed(LAYOUT, 0.2, np.random.default_rng(7))
    made = encoded(LAYOUT, old, new)
    other = plan([("a", "bfloat16", [80]), ("b", "float32", [20]), ("d", "bfloat16", [3, 10])], bucket_bytes=64)
    with pytest.raises(TransferError, match="other tensors"):
        applied(made, old, other)


def forged(*planes: bytes, entries: int, block: int = 0) -> bytes:
    """A delta of one frame whose planes are these, compressed."""
    packed = [zstandard.compress(plane) for plane in planes]
    frame = struct.pack("<II", block, entries) + b"".join(struct.pack("<I", len(p)) for p in packed) + b"".join(packed)
    return struct.pack("<4sB3x32sIQ", b"SLUD", 1, new_digest(LAYOUT.tensors).digest(), 1, len(frame)) + frame


def test_a_forged_delta_is_refused_before_it_writes_or_allocates() -> None:
    old, _ = changed(LAYOUT, 0.0, np.random.default_rng(7))
    fine = forged(b"\0\0", b"\0\0", b"\2\2", b"\0\0", entries=2)
    assert (applied(fine, old, LAYOUT)[:4].view("<u2") == old[:4].view("<u2") + 1).all()
    bomb = b"\0" * (1 << 20)
    far = forged(b"\0\xff", b"\0\xff", b"\2\2", b"\0\0", entries=2)
    for what, bad in {
        "beyond the block": far,
        "just beyond": forged(b"\0\x3f", b"\0\0", b"\2\2", b"\0\0", entries=2),
        "bomb": forged(b"\0\0", b"\0\0", bomb, b"\0\0", entries=2),
        "no entry": forged(b"", b"", b"", b"", entries=0),
        "more entries than elements": forged(*[b"\0" * 65] * 4, entries=65),
        "no such block": forged(b"\0\0", b"\0\0", b"\2\2", b"\0\0", entries=2, block=99),
        "too long a chain": encoded(LAYOUT, old, old) * (delta.MAX_CHAIN + 1),
        "nothing": b"",
    }.items():
        buffer = old.copy()
        with pytest.raises(TransferError):
            delta.apply(bad, buffer, LAYOUT.tensors)
        assert (buffer == old).all(), what


def test_a_delta_longer_than_allowed_is_given_up_early() -> None:
    layout = plan([("a", "float32", [64 * 100])], bucket_bytes=64)
    old, new = changed(layout, 1.0, np.random.default_rng(7))
    blocks = iter(range(1000))
    made = delta.encode(old, new, layout.tensors, most_bytes=1000, given_up=lambda: next(blocks) < 0)
    assert made is None
    assert next(blocks) < 10
    assert delta.encode(old, new, layout.tensors, most_bytes=MUCH, given_up=lambda: True) is None
    whole = encoded(layout, old, new)
    assert delta.encode(old, new, layout.tensors, most_bytes=len(whole)) == whole
    assert delta.encode(old, new, layout.tensors, most_bytes=len(whole) - 1) is None
