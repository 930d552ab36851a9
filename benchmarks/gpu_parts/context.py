"""What a part gets and what it hands over."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One measured value, and its ratio to a ceiling or a peer measured in the same call."""

    what: str
    value: float
    unit: str
    ratio: float | None = None
    ratio_of: str = ""
    ceiling: str = ""
    """The name under which later parts find the value."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Context:
    """The device, a folder for files, and the ceilings that former parts have measured."""

    device: str
    folder: Path
    ceilings: Mapping[str, float] = field(default_factory=dict)

    @property
    def small(self) -> bool:
        """Whether only the code is exercised."""
        return self.device == "cpu"

    @property
    def dtype(self) -> str:
        """What models compute in."""
        return "float32" if self.small else "bfloat16"

    def compared(self, what: str, value: float, unit: str, *, ceiling: str, rate: float) -> Figure:
        """A figure with the ratio of its `rate` to a ceiling; without one where the ceiling was not measured."""
        limit = self.ceilings.get(ceiling)
        ratio = rate / limit if limit else None
        return Figure(what=what, value=value, unit=unit, ratio=ratio, ratio_of=ceiling if limit else "")


def figures_in(path: Path) -> list[Figure]:
    """The figures that a part has written; a line that it could not finish is left out."""
    lines = path.read_text().splitlines(keepends=True) if path.is_file() else []
    return [Figure(**json.loads(line)) for line in lines if line.endswith("\n")]


def seconds(device: str, work: Callable[[], object], *, rounds: int) -> float:
    """The median time of `work`, after one round that warms up, the device's own time included."""
    import statistics
    import time

    import torch

    from sluice.accelerator import settle

    where, times = torch.device(device), list[float]()
    for _ in range(rounds + 1):
        started = time.perf_counter()
        work()
        settle(where)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


def each(figures: Mapping[str, tuple[float, str]]) -> Iterator[Figure]:
    """Figures without a ratio."""
    return (Figure(what=what, value=value, unit=unit) for what, (value, unit) in figures.items())


def relative(found: "torch.Tensor", expected: "torch.Tensor") -> float:
    """The norm of the difference over the norm of what was expected."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())
