"""How a process that runs other people's code begins: below its guard, under its limits, its pipes out of reach."""

import os
import resource
from collections.abc import Mapping
from typing import Any, BinaryIO

from services.reward.sandbox import privileges
from services.reward.sandbox.guard import guarded
from services.reward.sandbox.isolation import limit


def enter(parent_pid: int, limits: Mapping[str, Any]) -> tuple[BinaryIO, BinaryIO]:
    """Returns in the guarded worker, with the streams of jobs and replies; `limits` are guarded_process.Limits."""
    guarded(parent_pid, network=limits["network"], max_processes=limits["max_processes"])
    limit(resource.RLIMIT_AS, limits["memory_bytes"])
    limit(resource.RLIMIT_FSIZE, limits["file_bytes"])
    limit(resource.RLIMIT_CORE, 0)
    privileges.give_up()
    return _move_pipes_away()


def _move_pipes_away() -> tuple[BinaryIO, BinaryIO]:
    """Keeps stdin and stdout under private descriptors that no child inherits; 0 and 1 become /dev/null."""
    jobs, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)
    return jobs, replies
