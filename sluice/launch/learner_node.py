"""Keeps the learner's ranks of a further machine in the run: after a broken round the ranks join the next round.

who waits      for what                             unblocked by
the machine    node 0 and other machines to join    the last machine's joining, the deadline given to the ranks' program
`stay`         the end of a round                   the exit of the ranks' program, a signal
"""

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from sluice.errors import ConfigError, LaunchError
from sluice.launch.commands import learner_command, service_environ
from sluice.launch.interrupts import Interrupts
from sluice.launch.processes import Child, start
from sluice.process import exit_codes


async def stay(arguments: Sequence[str], *, grace_s: float, say: Callable[[str], None]) -> int:
    """Joins round after round until the run has ended (0) or a signal comes (130).

    `arguments` go to services.learner.distributed.node, whose output stays on this terminal. Raises LaunchError when the
    other machines stay away, ConfigError when the arguments are wrong.
    """
    with tempfile.TemporaryDirectory(prefix="sluice-learner-") as folder, Interrupts() as interrupts:
        ended = Path(folder) / "ended"
        command = learner_command([*arguments, "--", "--ended-file", str(ended)], environ=service_environ(threads=1))
        while True:
            child = await start(command, log_path=None)
            code = await _exit_code(child, interrupts, grace_s=grace_s, say=say)
            if interrupts.first.is_set():
                return exit_codes.INTERRUPTED
            if ended.exists():
                return 0
            if code == exit_codes.BAD_USAGE:
                raise ConfigError("the learner refused to start on this machine: see above")
            if code == exit_codes.NOT_JOINED:
                raise LaunchError("the learner's machines did not meet: see above")
            say(f"the learner's ranks here ended with code {code} before the run did: joining again")


async def _exit_code(child: Child, interrupts: Interrupts, *, grace_s: float, say: Callable[[str], None]) -> int:
    """The exit code of the process; the first signal ends the process with grace, the second without."""
    exited = asyncio.ensure_future(child.wait())
    interrupted = asyncio.ensure_future(interrupts.first.wait())
    try:
        await asyncio.wait([exited, interrupted], return_when=asyncio.FIRST_COMPLETED)
        if not exited.done():
            say("interrupted: leaving the run (again to leave at once)")
    finally:
        interrupted.cancel()
        await child.stop(grace_s=grace_s, at_once=interrupts.second)
    return await exited
