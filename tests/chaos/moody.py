"""An environment that the reward hosts, and that fails now and then in every way that a class can; else a game of two turns."""

import os
import random
import time
from zlib import crc32

from sluice.environments import Message, Opening, Reply, Row, Score

FAILS = 0.08
"""How often a turn is answered by a failure. Chosen: most groups of four episodes outlast it in three tries."""


class Moody:
    """Scores texts as tests/chaos/environment.py does."""

    scores = True

    def __init__(self) -> None:
        self.turns = 0

    def open(self, row: Row) -> Opening:
        """By the seed alone."""
        return Opening(messages=[Message(role="user", content=f"mood {row.seed % 100}")])

    def step(self, message: Message) -> object:
        """Done at the second turn."""
        self.turns += 1
        if random.random() < FAILS:
            return random.choice((_die, _hang, _raise, _large, _nonsense, _infinite))()
        if self.turns < 2:
            return "more"
        right = float(crc32(message.content.encode()) & 1)
        return Reply(done=True, score=Score(score=right))


def _die() -> None:
    os._exit(3)


def _hang() -> None:
    time.sleep(60)


def _raise() -> None:
    raise RuntimeError("not today")


def _large() -> str:
    return "x" * 100_000_000


def _nonsense() -> object:
    return {"score": 1}


def _infinite() -> Reply:
    return Reply(done=True, score=Score(score=float("nan")))
