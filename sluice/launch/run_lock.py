"""One launcher a run directory: two launchers would run two Redis servers on one append-only file.

The lock belongs to an open file, which the run's Redis inherits: after a `kill -9` of the launcher the directory is free
again only when the Redis has ended.
"""

import asyncio
import fcntl
import os
from pathlib import Path

from sluice.errors import LaunchError
from sluice.launch import deployments

PATIENCE_S = 10.0
"""Chosen: a Redis whose launcher has died ends within a second, so a lock held for longer belongs to a live launcher."""

PATIENCE_IN_POD_S = 300.0
"""Chosen: Kubernetes may start a pod while the one that it replaces still has its time to end (50 s with the default
launch.grace_s), and a network file system keeps the locks of a node that is gone for a lease, 90 s with NFS."""


async def lock_run_dir(run_dir: Path) -> int:
    """The descriptor that holds the lock of `run_dir` until closed. Raises LaunchError when the lock stays taken."""
    descriptor = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    give_up = asyncio.get_running_loop().time() + (PATIENCE_IN_POD_S if deployments.owner() else PATIENCE_S)
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if asyncio.get_running_loop().time() > give_up:
                os.close(descriptor)
                raise LaunchError(
                    f"{run_dir} is in use by another `sluice up`; stop that one first, or give another --run-dir"
                ) from None
            await asyncio.sleep(0.1)  # flock cannot wait with a deadline
        else:
            return descriptor
