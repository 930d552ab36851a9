"""What memory is made of: named parts that add up, each with the setting that lowers it. Bytes in, text for people out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {f"{letter}I": 1 << (10 * power) for power, letter in enumerate("KMGT", start=1)}
_SIZE = re.compile(r"^([0-9]+(?:\.[0-9]+)?) ?([KMGT]I?)?B?$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One use of memory."""

    name: str
    size_bytes: int
    knob: str = ""
    """The setting that lowers it, for people; empty: none does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The uses of one memory at the moment when they are most."""

    title: str
    parts: tuple[Part, ...]

    @property
    def total_bytes(self) -> int:
        """All parts together."""
        return sum(part.size_bytes for part in self.parts)

    @property
    def largest(self) -> Part:
        """The part that dominates."""
        return max(self.parts, key=lambda part: part.size_bytes)


def kept(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts that need any memory."""
    return tuple(part for part in parts if part.size_bytes > 0)


def gigabytes(size_bytes: float) -> str:
    """Bytes for people, in decimal units: 21.4 GB, 1.05 TB, 13 MB."""
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if size_bytes >= 0.9995 * limit:
            scaled = size_bytes / limit
            return f"{scaled:.0f} {unit}" if scaled >= 99.95 else f"{scaled:.3g} {unit}"
    return f"{size_bytes / 1e3:.3g} kB"


def parse_bytes(text: str) -> int:
    """`80GB`, `79.6 GiB` or a plain number of bytes. Raises ValueError with the rule and the text."""
    found = _SIZE.match(text.strip().upper())
    size = round(float(found[1]) * _UNITS[found[2] or ""]) if found else 0
    if not 0 < size < 1 << 60:
        raise ValueError(f"must be a size such as 80GB or 80GiB, got {text!r:.40}")
    return size
