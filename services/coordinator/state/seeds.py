"""Seeds by name: reproducible, and different for every name."""

from collections.abc import Iterable

import blake3


def seed_of(*parts: object) -> int:
    """A seed of 31 bits from the parts of a name."""
    return _seed(blake3.blake3("/".join(map(str, parts)).encode()))


def seeds_of(*parts: object, last: Iterable[int]) -> dict[int, int]:
    """The seed of each name that is made of the given parts and one last part; by last part."""
    begun, seeds = blake3.blake3(("/".join(map(str, parts)) + "/").encode()), {}
    for part in last:
        named = begun.copy()
        named.update(str(part).encode())
        seeds[part] = _seed(named)
    return seeds


def _seed(name: blake3.blake3) -> int:
    return int.from_bytes(name.digest(4), "little") >> 1
