"""The schedules of benchmarks/overlap.py alone: the same rows in virtual time, from the real conductor, assigner and board.

What processes, wires and Redis take is not in it: the figures are those of long steps, the same on every machine and under any
load. overlap.py says what remains of them between real processes.
"""

from benchmarks import overlap
from benchmarks.report import Row
from benchmarks.simulated.virtual_pace import virtual_pace

STEPS = 16
CASES = tuple(case for case in overlap.CASES if case[0].rollouts <= 64)
"""Without wires the number of rollouts says nothing but how many samples one of them holds."""


def run() -> list[Row]:
    """Every case."""
    return overlap.run(CASES, STEPS, virtual_pace)
