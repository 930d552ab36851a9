"""A verifier for tests of the sandbox: does to its process what the completion says."""

import os
import re
import signal
import sys
import time

from services.reward.ports import Grade, Question

NAME = "nasty"
VERSION = "666"


def prepare() -> None:
    """Nothing."""


def grade(*, question: Question, text: str, finished: bool) -> Grade:
    """Misbehaves, or scores 1."""
    _BEHAVIOURS.get(text, lambda: None)()
    return Grade(raw_score=float("nan") if text == "nan" else 1.0, acc=1.0, extracted=str(os.getpid()))


def _spin() -> None:
    while True:
        pass


def _regex() -> None:
    re.match(r"(a+)+$", "a" * 64 + "b")


def _power() -> None:
    str(9**9**9)


def _memory() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(1 << 26))


def _stubborn() -> None:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU):
        signal.signal(signum, signal.SIG_IGN)
    while True:
        time.sleep(60)


def _chatty() -> None:
    print("not a frame" * 10_000)
    os.write(1, b"\xff" * 100_000)
    sys.stdin.read()


def _raise() -> None:
    raise KeyError("boom")


_BEHAVIOURS = {
    "spin": _spin,
    "regex": _regex,
    "power": _power,
    "memory": _memory,
    "stubborn": _stubborn,
    "chatty": _chatty,
    "raise": _raise,
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: sys.exit(0),
    "wait": lambda: time.sleep(0.5),
}
