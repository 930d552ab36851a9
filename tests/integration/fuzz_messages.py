"""Requests that nobody would send on purpose, by hypothesis: for any message type, from its descriptor.

Four kinds: a good request but for a field or two; messages whose every field holds an edge of its type or something
plausible; such messages cut, doubled or with a bit changed; and bytes at random.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import hypothesis.strategies as st
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

Known = Mapping[str, tuple[Any, ...]]
"""By field name: values that mean something to the services under test, such as a fence or an id that is alive."""

ALWAYS_SET = {"preview"}
"""A rollback that is no preview ends the coordinator on purpose."""

_INT32, _INT64 = (-(2**31), 2**31 - 1), (-(2**63), 2**63 - 1)
_RANGES = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.TYPE_ENUM: (-1, 9),
}
_FLOATS = (0.0, -1.0, 0.05, 1.0, math.nan, math.inf, -math.inf, 1e308, -0.0)
_TEXTS = (
    "",
    "a",
    "\x00",
    "../../etc/passwd",
    "a" * 3000,
    "{}",
    "[1",
    "null",
    '{"answer": 1}',
    "\u202e",
    "9" * 400,
    "-",
)
_BYTES = (b"", b"\x05\0\0\0", b"\x05\0\0\0\x06\0\0\0", b"\x05\0\0", b"\xff\xff\xff\xff", b"\0\0\xc0\x7f")
_DEEPEST = 4


def requests(descriptor: Descriptor, known: Known, *, good: Message | None, raw: bool) -> st.SearchStrategy[bytes]:
    """Serialised requests of a type, most of them `good` but for a field or two.

    Without `raw` all of them are whole messages with known fields.
    """
    anything = messages(descriptor, known)
    good = GetMessageClass(descriptor)() if good is None else good
    names = st.sets(st.sampled_from([field.name for field in descriptor.fields] or [""]), max_size=2)
    near = st.builds(lambda other, changed: _changed(good, other, changed), anything, names)
    whole = st.one_of(near, near, near, anything).map(lambda message: message.SerializeToString())
    if not raw:
        return whole
    damaged = st.builds(_damage, whole, st.integers(0, 1 << 16), st.sampled_from(("cut", "double", "flip")))
    return st.one_of(whole, whole, whole, damaged, st.binary(max_size=120))


def messages(descriptor: Descriptor, known: Known, depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of a type: of each field nothing, or a value."""
    fields = {
        field.name: _field(field, known, depth) if field.name in ALWAYS_SET else st.none() | _field(field, known, depth)
        for field in descriptor.fields
        if depth < _DEEPEST
    }
    return st.fixed_dictionaries(fields).map(lambda values: _filled(GetMessageClass(descriptor), values))


def _field(field: FieldDescriptor, known: Known, depth: int) -> st.SearchStrategy[Any]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        key, value = (_one(part, known, depth) for part in kind.fields)
        return st.dictionaries(key, value, max_size=3)
    one = _one(field, known, depth)
    return st.lists(one, max_size=3) if field.is_repeated else one


def _one(field: FieldDescriptor, known: Known, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        return messages(field.message_type, known, depth + 1)
    if field.name in known and isinstance(known[field.name][0], str) == (field.type == FieldDescriptor.TYPE_STRING):
        return st.sampled_from(known[field.name])
    if field.type in _RANGES:
        low, high = _RANGES[field.type]
        return st.sampled_from([edge for edge in (low, -1, 0, 1, 2, 3, 64, high) if low <= edge <= high])
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from(_TEXTS)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from(_BYTES)
    return st.sampled_from(_FLOATS)


def _changed(good: Message, other: Message, names: Collection[str]) -> Message:
    """`good` with the fields of these names as `other` has them."""
    made = type(good)()
    made.CopyFrom(good)
    only = type(good)()
    only.CopyFrom(other)
    for field in good.DESCRIPTOR.fields:
        (made if field.name in names else only).ClearField(field.name)
    made.MergeFrom(only)
    return made


def _filled(kind: type[Message], values: Mapping[str, Any]) -> Message:
    return kind(**{name: value for name, value in values.items() if value is not None})


def _damage(data: bytes, where: int, how: str) -> bytes:
    if not data:
        return b"\xff"
    at = where % len(data)
    if how == "cut":
        return data[:at]
    if how == "double":
        return data + data[at:]
    return data[:at] + bytes([data[at] ^ (1 << where % 8)]) + data[at + 1 :]
