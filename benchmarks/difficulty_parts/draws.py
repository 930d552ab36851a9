"""What a draw costs, with few rows and with a million."""

import random
import time
from dataclasses import dataclass

from benchmarks.report import Row
from services.coordinator.prompts.difficulty import Difficulty
from services.coordinator.prompts.order import row_index

N, DRAWS, STRIDE = 8, 2000, 37


def draw_rows() -> list[Row]:
    """The time of a draw, from as few rows as the sets have and from a million; the latter may take twice as long."""
    took = {size: _draw_us(size) for size in (400, 1_000_000)}
    ratio = took[1_000_000] / took[400]
    rows = [Row(what=f"a draw from {size} rows", value=us, unit="us", target="", met=True) for size, us in took.items()]
    return [*rows, Row(what="a draw from 1000000 rows / 400", value=ratio, unit="", target="<= 2", met=ratio <= 2)]


def _draw_us(size: int) -> float:
    sampler, outcomes = Difficulty(Numbers(size)), random.Random(0)
    for row in range(0, size, max(1, size // 20_000)):
        right = outcomes.randrange(N + 1) / N
        sampler.states.observe(row, right=right, signal=0 < right < 1)
    sampler.choose(f"{size}:0")  # the permutation of a pass is made once
    began = time.process_time()
    for draw in range(DRAWS):
        sampler.choose(f"{size + draw * STRIDE % (size // 2)}:0")
    return (time.process_time() - began) / DRAWS * 1e6


@dataclass(frozen=True, slots=True)
class Numbers:
    """Rows without prompts, in a shuffled order."""

    size: int

    def place(self, position: int) -> tuple[int, int]:
        """See PromptStream."""
        return row_index(position, size=self.size, seed=0, shuffle=True)

    def fits(self, row: int) -> bool:
        """See PromptStream."""
        return True

    def id_of(self, row: int) -> str:
        """See PromptStream."""
        return str(row)
