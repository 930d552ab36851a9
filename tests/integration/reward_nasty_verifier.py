"""A verifier for tests of the sandbox: does to its process what the completion says.

Where the ground truth is a folder, a file named after the completion appears there before it begins.
"""

import os
import re
import signal
import socket
import sys
import time
import uuid
from pathlib import Path

from services.reward.ports import Grade, Question

NAME = "nasty"
VERSION = "666"
TOKEN = uuid.uuid4().hex
"""Tells this process from others: each is the second of its process namespace."""


def prepare() -> None:
    """Nothing."""


def grade(*, question: Question, text: str, finished: bool) -> Grade:
    """Misbehaves, or scores 1."""
    if question.ground_truth:
        (Path(question.ground_truth) / text).touch()
    what, _, argument = text.partition(" ")
    if what == "connect":
        socket.create_connection(("127.0.0.1", int(argument)), timeout=30).close()
    if what == "do":
        exec(argument, {"os": os})
    _BEHAVIOURS.get(what, lambda: None)()
    return Grade(raw_score=float("nan") if text == "nan" else 1.0, acc=1.0, extracted=TOKEN)


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


def _fork_bomb() -> None:
    while True:
        try:
            os.fork()
        except BlockingIOError:  # the limit; every process of it goes on trying
            continue


def _daemon() -> None:
    """Leaves a process behind that left the session, lost its parent, and is deaf to what can be ignored."""
    if os.fork() != 0:
        return
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    while True:
        time.sleep(60)


def _file() -> None:
    with open("/tmp/sluice-nasty", "wb") as file:
        os.unlink(file.name)
        for _ in range(64):
            file.write(bytes(1 << 20))


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
    "bomb": _fork_bomb,
    "daemon": _daemon,
    "file": _file,
    "chatty": _chatty,
    "raise": _raise,
    "die": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: sys.exit(0),
    "wait": lambda: time.sleep(0.5),
}
