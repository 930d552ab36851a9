"""Packed little-endian bytes on the wire <-> numpy arrays inside."""

import numpy as np

from sluice.errors import InvalidRequest

_INT32 = np.dtype("<i4")
_FLOAT32 = np.dtype("<f4")


def pack_ids(ids: np.ndarray | list[int]) -> bytes:
    """int32[T] token ids -> 4 * T bytes."""
    return np.ascontiguousarray(ids, dtype=_INT32).tobytes()


def unpack_ids(data: bytes, *, field: str = "token_ids") -> np.ndarray:
    """4 * T bytes -> read-only int32[T]. Raises InvalidRequest on a torn array."""
    return _unpack(data, _INT32, field)


def pack_floats(values: np.ndarray | list[float]) -> bytes:
    """float32[T] -> 4 * T bytes."""
    return np.ascontiguousarray(values, dtype=_FLOAT32).tobytes()


def unpack_floats(data: bytes, *, field: str = "logprobs") -> np.ndarray:
    """4 * T bytes -> read-only float32[T]. Raises InvalidRequest on a torn array."""
    return _unpack(data, _FLOAT32, field)


def _unpack(data: bytes, dtype: np.dtype, field: str) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise InvalidRequest(f"{field}: must be a multiple of {dtype.itemsize} bytes, got {len(data)}")
    return np.frombuffer(data, dtype=dtype)
