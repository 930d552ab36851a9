"""The choices in messages about numbers that have to divide another."""

_MOST = 1024
"""Larger divisors are not listed: nobody has so many ranks in a group."""


def divisors(number: int) -> list[int]:
    """The divisors of a number >= 1 up to 1024, rising."""
    return [each for each in range(1, min(number, _MOST) + 1) if number % each == 0]
