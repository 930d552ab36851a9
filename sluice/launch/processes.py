"""One child process: its own session, its own log file, gone when the launcher is gone.

Waits: for the child's exit. `stop` bounds this wait: SIGTERM, then after the grace time SIGKILL to the session.
"""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sluice.errors import ConfigError, LaunchError
from sluice.launch.commands import Command, inherited
from sluice.process import exit_codes
from sluice.process.child import armed
from sluice.process.output import last_words, opened_log, tail


@dataclass(kw_only=True, slots=True)
class Child:
    """A process that the launcher started."""

    name: str
    process: asyncio.subprocess.Process
    log_path: Path | None
    """None: the launcher's own output."""
    started_s: float
    """Monotonic seconds."""
    killed: str = ""
    """Why the launcher killed the process; empty if the launcher did not."""
    node: str = field(default_factory=socket.gethostname)
    """Task.node: this machine."""
    lost: str = ""
    """Task.lost: a child of this process always has an exit code."""

    @property
    def alive(self) -> bool:
        """Whether the process has not been reaped yet."""
        return self.process.returncode is None

    async def wait(self) -> int:
        """The exit code; minus the number of the signal that ended the process."""
        return await self.process.wait()

    async def notice(self) -> str:
        """Task.notice: nobody announces the end of this machine."""
        return await asyncio.get_running_loop().create_future()

    async def stop(self, *, grace_s: float, at_once: asyncio.Event | None = None) -> None:
        """Ends the whole session, without grace once `at_once` is set; returns when the child is reaped."""
        if self.alive:
            _signal_session(self.process.pid, signal.SIGTERM)
            waits = [asyncio.ensure_future(self.process.wait())]
            waits += [asyncio.ensure_future(at_once.wait())] if at_once else []  # type: ignore[list-item]
            await asyncio.wait(waits, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        _signal_session(self.process.pid, signal.SIGKILL)
        await self.process.wait()

    def kill(self, why: str) -> None:
        """SIGKILL to the whole session; ends stopped processes too, and on Linux the sessions that its processes started."""
        self.killed = why
        _signal_session(self.process.pid, signal.SIGKILL)

    def log_tail(self) -> str:
        """The last lines of the child's log, for an error message."""
        return "" if self.log_path is None else tail(self.log_path)

    def last_words(self) -> str:
        """Task.last_words."""
        return last_words(self.name, self.log_path)


async def start(
    command: Command,
    *,
    log_path: Path | None,
    pass_fds: Sequence[int] = (),
    umask: int = -1,
    inherits: Mapping[str, str] | None = None,
) -> Child:
    """Starts `command` here; stdout and stderr are appended to `log_path`, or without a path go where the launcher's go.

    `command.said` is read on standard input, the way for a secret: it is in no file, argument or environment.
    `umask` is for the files that the command makes; -1: as this process's. `inherits`: in place of this process's environment.

    Raises LaunchError when the command cannot be started, DiskFull when there is no room for its log.
    """
    started_s = time.monotonic()
    wrapped = [*armed(signal.SIGTERM, umask=umask), *command.argv]
    with contextlib.ExitStack() as opened:
        log = None
        if log_path is not None:
            log = opened.enter_context(opened_log(command.name, log_path))
        try:
            process = await asyncio.create_subprocess_exec(
                *wrapped,
                stdin=opened.enter_context(_holding(command.said)) if command.said else asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(inherited() if inherits is None else inherits) | dict(command.environ),
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except OSError as error:
            raise LaunchError(f"{command.name}: cannot start {command.argv[0]}: {error}") from error
    return Child(name=command.name, process=process, log_path=log_path, started_s=started_s)


@contextlib.contextmanager
def _holding(text: str) -> Iterator[int]:
    """The reading end of a pipe that holds `text`, which must fit into a pipe (4 KiB everywhere), and then ends."""
    read_fd, write_fd = os.pipe()
    try:
        assert len(text.encode()) <= 4096, "more than a pipe holds would block this process"
        os.write(write_fd, text.encode())
        os.close(write_fd)
        yield read_fd
    finally:
        os.close(read_fd)


async def read_ready(read_fd: int, child: Child, *, timeout_s: float) -> str:
    """What the child writes to its ready pipe.

    Raises LaunchError with the child's log when the child dies or stays silent, ConfigError when it ends with BAD_USAGE.
    """
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb")
    )
    try:
        async with asyncio.timeout(timeout_s):
            text = await reader.read(1024)
    except TimeoutError:
        raise LaunchError(
            f"{child.name} was not ready after {timeout_s:.0f} s; its log ends:\n{child.log_tail()}"
        ) from None
    finally:
        transport.close()
    if not text:
        code = await child.process.wait()
        raise (ConfigError if code == exit_codes.BAD_USAGE else LaunchError)(child.last_words())
    return text.decode()


def _signal_session(pid: int, signum: signal.Signals) -> None:
    """Sends a signal to the child's whole process group; does nothing when the group is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signum)
