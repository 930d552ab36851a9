"""Durations on the command line, as argparse's types: no number, nan and what no timer takes are bad usage."""

import argparse

from sluice.rpc.requests import LONGEST_S

_MOST_DAYS = 36_500.0


def seconds(text: str) -> float:
    """Seconds > 0, at most a week, which is what servers take."""
    return _within(float(text), LONGEST_S)


def grace(text: str) -> float:
    """Seconds >= 0, at most a week."""
    return 0.0 if float(text) == 0 else seconds(text)


def days(text: str) -> float:
    """Days > 0, at most a century."""
    return _within(float(text), _MOST_DAYS)


def _within(value: float, most: float) -> float:
    if not 0 < value <= most:
        raise argparse.ArgumentTypeError(f"must be > 0 and <= {most:g}, got {value:g}")
    return value
