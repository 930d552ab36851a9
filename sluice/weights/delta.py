"""One version's packed bytes as the difference from another version's bytes, exact to the bit.

Elements are compared and subtracted as integers of their width, so that NaN payloads, -0.0 and denormals are as exact as
any other number. A step of a small learning rate moves most changed elements to the next number of their dtype, which is an
integer difference of 1 or -1, whatever the number: differences compress far better than the new bits (docs/adr/0014-deltas.md).

    chain    a delta, then a delta from that version, and so on: bytes after bytes
    delta    HEADER: magic, format, the layout's fingerprint, number of frames, bytes of the frames; then the frames
    frame    FRAME: block, entries; the length of each plane; then the planes, each a zstd frame of `entries` bytes
    block    at most BLOCK_ELEMENTS neighbouring elements of one width; a block without a change has no frame
    planes   2 of the gaps (low bytes, high bytes), absent when every element has an entry; then as many as an element has
             bytes, of the differences (lowest byte first), in zigzag form: 0, -1, 1, -2 ... are 0, 1, 2, 3 ...
    gap      the elements skipped before an entry; an entry may have difference 0, and one stands at least at every
             GAP_ELEMENTS-th element, so that a gap always fits its 2 bytes

Whoever applies a delta compares the digest of the result with the manifest's digest before anybody uses the result.
"""

import contextlib
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

import numpy as np

from sluice.errors import TransferError
from sluice.weights.manifest import DTYPE_BYTES, TensorSpec, new_digest
from sluice.weights.planes import compress, decompress, unzigzag, zigzag

T = TypeVar("T")
U = TypeVar("U")

MAX_CHAIN = 16
"""Deltas in a chain: bounds the work that a message can ask for."""

BLOCK_ELEMENTS = 1 << 20
GAP_ELEMENTS = 1 << 16

_MAGIC, _FORMAT = b"SLUD", 1
_HEADER = struct.Struct("<4sB3x32sIQ")
_FRAME = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_GAP_PLANES = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """Neighbouring elements of one width: bytes [start, end) of the packed buffer."""

    start: int
    end: int
    width: int

    @property
    def elements(self) -> int:
        return (self.end - self.start) // self.width

    def of(self, buffer: np.ndarray) -> np.ndarray:
        """The block's elements as unsigned integers, a view of `buffer`, uint8[total_bytes]."""
        return buffer[self.start : self.end].view(f"<u{self.width}")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Frame:
    """A frame whose lengths have been checked, not yet decompressed."""

    block: _Block
    entries: int
    planes: list[memoryview] = field(repr=False)


def encode(
    old: np.ndarray,
    new: np.ndarray,
    tensors: Sequence[TensorSpec],
    *,
    most_bytes: int,
    threads: int = 1,
    given_up: Callable[[], bool] = lambda: False,
) -> bytes | None:
    """The delta from `old` to `new`, uint8[total_bytes] both, of one layout; None when it is longer than `most_bytes`.

    Stops as soon as it is longer, or when `given_up` says so. Holds the result and a few blocks for each thread.
    """
    assert old.shape == new.shape
    found: list[bytes] = []
    left = most_bytes - _HEADER.size
    one = lambda numbered: _encoded(*numbered, old=old, new=new)  # noqa: E731
    with contextlib.closing(_mapped(one, enumerate(_blocks(tensors)), threads=threads)) as frames:
        for frame in frames:
            left -= len(frame)
            if left < 0 or given_up():
                return None
            if frame:
                found.append(frame)
    length = sum(map(len, found))
    return b"".join([_HEADER.pack(_MAGIC, _FORMAT, _fingerprint(tensors), len(found), length), *found])


def apply(chain: bytes | memoryview, buffer: np.ndarray, tensors: Sequence[TensorSpec], *, threads: int = 1) -> None:
    """Turns the base's bytes in `buffer`, uint8[total_bytes], writeable, into the bytes of the chain's last version.

    Raises TransferError for a chain that is not whole or not of this layout. `buffer` then holds neither version: give a
    copy of the base. Never writes beyond `buffer`; decompresses no plane into more bytes than its block has elements.
    """
    blocks, fingerprint = list(_blocks(tensors)), _fingerprint(tensors)
    rest = memoryview(chain).cast("B")
    for _ in range(MAX_CHAIN):
        frames, rest = _parsed(rest, blocks, fingerprint)
        deque(_mapped(lambda frame: _apply(frame, buffer), frames, threads=threads), maxlen=0)
        if not rest:
            return
    raise _damaged(f"a chain of more than {MAX_CHAIN} deltas")


def _blocks(tensors: Sequence[TensorSpec]) -> Iterator[_Block]:
    """Cuts the packed buffer into blocks: tensors of one width that follow each other are cut as one."""
    filled = [spec for spec in tensors if spec.size_bytes]
    widths = [DTYPE_BYTES[spec.dtype] for spec in filled]
    firsts = [i for i, width in enumerate(widths) if i == 0 or width != widths[i - 1]]
    for first, after in pairwise([*firsts, len(filled)]):
        width, last = widths[first], filled[after - 1]
        end = last.offset_bytes + last.size_bytes
        for start in range(filled[first].offset_bytes, end, BLOCK_ELEMENTS * width):
            yield _Block(start=start, end=min(start + BLOCK_ELEMENTS * width, end), width=width)


def _fingerprint(tensors: Sequence[TensorSpec]) -> bytes:
    return new_digest(tensors).digest()


def _encoded(number: int, block: _Block, *, old: np.ndarray, new: np.ndarray) -> bytes:
    """The frame of a block; empty without a change."""
    before, after = block.of(old), block.of(new)
    differs = before != after
    count = int(np.count_nonzero(differs))
    if not count:
        return b""
    gaps: list[bytes] = []
    if 2 * count >= block.elements:  # a gap costs at least a bit, as does a difference of 0
        differences = after - before
    else:
        differs[GAP_ELEMENTS - 1 :: GAP_ELEMENTS] = True
        places = np.flatnonzero(differs)
        differences = after[places] - before[places]
        gaps = compress((np.diff(places, prepend=-1) - 1).astype("<u2"), planes=_GAP_PLANES)
    planes = [*gaps, *compress(zigzag(differences), planes=block.width)]
    lengths = [_LENGTH.pack(len(plane)) for plane in planes]
    return b"".join([_FRAME.pack(number, len(differences)), *lengths, *planes])


def _parsed(data: memoryview, blocks: Sequence[_Block], fingerprint: bytes) -> tuple[list[_Frame], memoryview]:
    """The frames of the first delta of a chain, and what follows that delta. Raises TransferError."""
    header, data = _cut(data, _HEADER.size)
    magic, version, layout, count, length = _HEADER.unpack(header)
    if (magic, version) != (_MAGIC, _FORMAT):
        raise _damaged(f"begins with {bytes(header[:5]).hex()}; this version reads {(_MAGIC + bytes([_FORMAT])).hex()}")
    if layout != fingerprint:
        raise _damaged("made for other tensors than the manifest's")
    body, rest = _cut(data, length)
    frames, next_block = [], 0
    for _ in range(count):
        fixed, body = _cut(body, _FRAME.size)
        number, entries = _FRAME.unpack(fixed)
        if not next_block <= number < len(blocks):
            raise _damaged(f"block {number} follows block {next_block - 1}, of {len(blocks)}")
        frame, body = _frame(body, blocks[number], entries)
        frames.append(frame)
        next_block = number + 1
    if body:
        raise _damaged(f"{len(body)} bytes after the last frame")
    return frames, rest


def _frame(body: memoryview, block: _Block, entries: int) -> tuple[_Frame, memoryview]:
    if not 0 < entries <= block.elements:
        raise _damaged(f"{entries} entries in a block of {block.elements} elements")
    count = block.width + (_GAP_PLANES if entries < block.elements else 0)
    lengths, body = _cut(body, count * _LENGTH.size)
    planes = []
    for (length,) in _LENGTH.iter_unpack(lengths):
        plane, body = _cut(body, length)
        planes.append(plane)
    return _Frame(block=block, entries=entries, planes=planes), body


def _apply(frame: _Frame, buffer: np.ndarray) -> None:
    elements, width = frame.block.of(buffer), frame.block.width
    differences = unzigzag(decompress(frame.planes[-width:], count=frame.entries))
    if len(frame.planes) == width:
        elements += differences
        return
    gaps = decompress(frame.planes[:-width], count=frame.entries)
    places = np.cumsum(gaps.astype(np.int64) + 1) - 1
    if places[-1] >= len(elements):
        raise _damaged(f"an entry at element {places[-1]} of a block of {len(elements)}")
    elements[places] += differences  # places rise, so none is there twice


def _mapped(work: Callable[[T], U], items: Iterable[T], *, threads: int) -> Generator[U]:
    """`work` of every item, in the order of the items, in `threads` threads; a few results ahead are held."""
    if threads == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="delta") as pool:
        ahead: deque[Future[U]] = deque()
        for item in items:
            ahead.append(pool.submit(work, item))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _cut(data: memoryview, length: int) -> tuple[memoryview, memoryview]:
    if length > len(data):
        raise _damaged(f"ends {length - len(data)} bytes too early")
    return data[:length], data[length:]


def _damaged(what: str) -> TransferError:
    return TransferError(f"delta: {what}; the old weights stay")
