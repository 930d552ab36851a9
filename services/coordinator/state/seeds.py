"""Seeds by name: reproducible, and different for every name."""

import blake3


def seed_of(*parts: object) -> int:
    """A seed of 31 bits from the parts of a name."""
    return int.from_bytes(blake3.blake3("/".join(map(str, parts)).encode()).digest(4), "little") >> 1
