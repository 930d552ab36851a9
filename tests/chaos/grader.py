"""A verifier that calls about every other completion right, by its text alone: a random model's groups have signal."""

from zlib import crc32

from services.reward.ports import Grade, Question

NAME = "coin"
VERSION = "1"


def prepare() -> None:
    """Nothing."""


def grade(*, question: Question, text: str, finished: bool) -> Grade:
    """1.0 or 0.0, the same for the same text."""
    right = float(crc32(text.encode()) & 1)
    return Grade(raw_score=right, acc=right, extracted=text[:8])
