"""A grader process: `python -m services.reward.worker PARENT_PID MEMORY_BYTES`, spoken to over stdin and stdout.

A job arrives as one frame (verifier, settings, question, completions). The answer is one frame that says `ready` or
`refused`, then one frame a completion as soon as it is judged, so that the service knows which one hangs; a verifier
that is asked about the group at once (`whole`) answers for all of it at the end. What a grader prints
goes to /dev/null and what it reads is empty: the pipes are moved out of its way first. The process ends with its
parent, whatever it is doing, and at the end of its input.

It enforces memory and, as a backstop, CPU time. The wall-clock limit is the service's (sandbox.py), from outside.
"""

import ctypes
import math
import os
import resource
import signal
import sys
from typing import BinaryIO

from services.reward.frames import Frame, read, write
from services.reward.loading import Asked, describe
from services.reward.ports import Completion, Question

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Serves jobs until the input ends."""
    parent_pid, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    _end_with(parent_pid)
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    jobs, replies = _move_pipes_away()
    while (job := read(jobs)) is not None:
        _serve(job, replies)


def _serve(job: Frame, replies: BinaryIO) -> None:
    try:
        asked = Asked(job["verifier"], job["settings"])
    except Exception as error:  # noqa: BLE001 - a verifier is anybody's code; why it cannot be loaded is the answer
        write(replies, {"refused": describe(error)})
        return
    write(replies, {"ready": asked.version, "whole": asked.whole})
    question = Question(**job["question"])
    completions = [Completion(**completion) for completion in job["completions"]]
    timeout_s = job["timeout_s"]
    if asked.whole:
        _allow_cpu(timeout_s * len(completions))
        for reply in asked.about_all(question, completions, timeout_s=timeout_s):
            write(replies, reply)
        return
    for completion in completions:
        _allow_cpu(timeout_s)
        write(replies, asked.about(question, completion))


def _end_with(parent_pid: int) -> None:
    """Asks the kernel for SIGKILL at the parent's death (Linux), and covers the parent that is dead already."""
    if sys.platform != "linux":
        return  # there the end of standard input has to do
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        sys.exit("the reward service is gone")


def _limit(kind: int, value: int) -> None:
    """Sets both limits, never above what is allowed to us."""
    _, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _allow_cpu(timeout_s: float) -> None:
    """Twice the wall-clock limit, and a second, from now on; then SIGXCPU ends the process."""
    used_s = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used_s.ru_utime + used_s.ru_stime + 2 * timeout_s + 1)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _move_pipes_away() -> tuple[BinaryIO, BinaryIO]:
    """Keeps stdin and stdout under private descriptors that no child inherits; 0 and 1 become /dev/null."""
    jobs, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return jobs, replies


if __name__ == "__main__":
    main()
