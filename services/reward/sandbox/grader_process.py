"""A grader process: `python -m services.reward.sandbox.grader_process PARENT_PID LIMITS`, with jobs on stdin.

A job arrives as one frame (verifier, settings, question, completions). The answer on stdout is one frame that says `ready`
or `refused`, then one frame for each completion as soon as the completion is judged, so that the service knows which
completion hangs; a verifier that judges the group at once (`whole`) answers for all completions at the end. A grader's own
output goes to /dev/null and its input is empty: the pipes are moved to other descriptors first. The process ends with its
guard (guard.py), at any moment, and at the end of its input.

The process runs under limits of memory, file size, processes and network (LIMITS, JSON: guarded_process.Limits) and, as a
backstop, of CPU time. The service enforces the wall-clock limit from outside (pool.py).
"""

import json
import math
import resource
import sys
from typing import BinaryIO

from services.reward.ports import Completion, Question
from services.reward.sandbox.entering import enter
from services.reward.sandbox.frames import Frame, read, write
from services.reward.sandbox.loading import Asked, describe


def main() -> None:
    """Serves jobs until the input ends."""
    jobs, replies = enter(int(sys.argv[1]), json.loads(sys.argv[2]))
    while (job := read(jobs)) is not None:
        _serve(job, replies)


def _serve(job: Frame, replies: BinaryIO) -> None:
    try:
        asked = Asked(job["verifier"], job["settings"])
    except Exception as error:  # noqa: BLE001 - foreign code may raise anything; the reason is the answer
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


def _allow_cpu(timeout_s: float) -> None:
    """Twice the wall-clock limit, and a second, from now on; then SIGXCPU ends the process."""
    used_s = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used_s.ru_utime + used_s.ru_stime + 2 * timeout_s + 1)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


if __name__ == "__main__":
    main()
