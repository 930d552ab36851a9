"""One task of a Slurm job: an `srun` step, an ordinary child of the launcher, with sluice/process/placed.py on the node.

 who waits     for what                 unblocked by
 `begin`       the step's first word    the node; srun, which ends where there is no room; `node_timeout_s`
 `Task.wait`   the end of the task      the node's word; the end of srun; a node that is silent for `node_timeout_s`
No srun gets a signal while its task is to end in order: on SIGTERM srun kills its step at once. What the task is to get goes
over the step's standard input. srun gets SIGTERM when the launcher is gone, and when its node is silent.
"""

import asyncio
import contextlib
import re
import signal
import time
from collections import deque
from pathlib import Path
from typing import BinaryIO

from sluice.errors import LaunchError
from sluice.launch.commands import Command, inherited
from sluice.launch.engines.port import LOST
from sluice.launch.engines.slurm_job import Node
from sluice.launch.engines.srun import ROOM_WITHIN_S, srun_line, step_environ
from sluice.process.child import armed, module_command
from sluice.process.output import last_words, tail
from sluice.process.placed import BEAT, KILL, SAID, TERM
from sluice.run_dir.private import open_private

SRUN_ENDS_WITHIN_S = 5.0
"""Between SIGTERM and SIGKILL to an srun; it takes milliseconds where the node answers."""

BEATS = 10
"""Words that a node of a task is expected to say in `node_timeout_s`, and one a second at least."""

_CODE = re.compile(r"-?\d{1,3}")
_HOW_IT_ENDED = re.compile(r"srun: error: \S+: task 0: (?:Exited with exit code (\d+)|.+)")
_CANNOT_RUN = re.compile(r"execve\(\)|unrecognized option")


class NoStep(Exception):
    """Slurm has not made the step, or its node is silent, for the reason that is the text. Another node may do better."""

    def __init__(self, why: str, *, rest_s: float, busy: bool = False) -> None:
        super().__init__(why)
        self.rest_s = rest_s
        """How long the node is better left alone."""
        self.busy = busy
        """Whether Slurm believes that the place is taken."""


class Step:
    """A task (port.py), placed by `begin`."""

    def __init__(
        self, command: Command, node: Node, *, job: str, log_path: Path, node_timeout_s: float, overlaps: bool
    ) -> None:
        self.name, self.node, self.log_path, self.needs = command.name, node.name, log_path, command.needs
        self.started_s, self.killed, self.lost = time.monotonic(), "", ""
        self._command, self._place, self._job, self.overlaps = command, node, job, overlaps
        self._node_timeout_s, self._beat_s = node_timeout_s, min(1.0, node_timeout_s / BEATS)
        self._begun = asyncio.Event()
        self._relayed: BinaryIO | None = None
        """The log, where the node does not see it and this process writes it."""
        self._code: int | None = None
        self._ended = asyncio.Event()
        self._words: deque[str] = deque(maxlen=5)
        """Of srun and Slurm themselves."""
        self._srun: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    # --- placing -------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Returns when the task runs. Raises NoStep, or LaunchError where the node cannot run the task; then, and when
        cancelled, nothing is left placed."""
        self._srun = await asyncio.create_subprocess_exec(
            *armed(signal.SIGTERM),
            *srun_line(self._command, self._place, job=self._job, overlaps=self.overlaps),
            *self._placed_line(),
            *self._command.argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=step_environ(inherited()) | dict(self._command.environ),
            start_new_session=True,
        )
        self._watching = asyncio.create_task(self._watch(self._srun), name=f"step-{self.name}")
        try:
            await _first(self._begun, self._ended, within_s=self._node_timeout_s + ROOM_WITHIN_S)
            if not self._begun.is_set():
                self._raise_why()
        except BaseException:
            self._watching.cancel()
            await asyncio.wait([self._watching])
            raise

    def _placed_line(self) -> list[str]:
        """The launcher is to know first: a task takes its launcher for gone after twice the time."""
        silent_beats = round(2 * self._node_timeout_s / self._beat_s)
        beats = [f"{self._beat_s:g}", str(silent_beats), str(self.log_path.absolute())]
        return [*module_command("sluice.process.placed"), *beats]

    def _raise_why(self) -> None:
        words = "; ".join(self._words) or "it says nothing"
        if any(map(_CANNOT_RUN.search, self._words)):
            raise LaunchError(f"{self.name} cannot start on node {self.node}: {words}")
        if self.alive:
            raise NoStep(f"starts no step within {self._node_timeout_s:g} s ({words})", rest_s=self._node_timeout_s)
        raise NoStep(f"starts no step ({words})", rest_s=ROOM_WITHIN_S, busy="nodes are busy" in words)

    # --- what goes on ---------------------------------------------------------------------------------------------

    async def _watch(self, srun: asyncio.subprocess.Process) -> None:
        """Until the task has ended or its node is lost, and srun is gone."""
        try:
            await self._listen(srun)
        finally:
            self._ended.set()
            await self._reap(srun)

    async def _listen(self, srun: asyncio.subprocess.Process) -> None:
        """Reads what the node and srun say. Silence is counted, so that a suspended job finds no node lost."""
        assert srun.stdout is not None
        silent_s = 0.0
        while self._code is None:
            try:
                async with asyncio.timeout(2 * self._beat_s):
                    line = await srun.stdout.readline()
            except TimeoutError:
                silent_s += 2 * self._beat_s
                if self._begun.is_set() and silent_s >= self._node_timeout_s:  # before, `begin` has the deadline
                    self._lose(f"node {self.node} is silent for {self._node_timeout_s:g} s")
                continue
            except ValueError:
                continue  # a line that is longer than any of placed.py's
            if not line:
                await self._srun_is_gone(srun)
                return
            silent_s = 0.0
            self._hear(line.decode(errors="replace").rstrip())

    def _hear(self, line: str) -> None:
        if not line.startswith(SAID):
            self._words.append(line[:500])
            if self._relayed is not None:
                with contextlib.suppress(OSError):
                    self._relayed.write(f"{line}\n".encode())
            return
        word, _, rest = line.removeprefix(SAID).partition(" ")
        if word == "started":
            self.started_s = time.monotonic()
            self._begun.set()
        elif word == "unseen":
            with contextlib.suppress(OSError):
                self._relayed = open_private(self.log_path, "ab", buffering=0)
        elif word == "ended" and _CODE.fullmatch(rest):
            self._code = int(rest)
        self._tell(BEAT)

    async def _srun_is_gone(self, srun: asyncio.subprocess.Process) -> None:
        """Finds out how a task ended whose node has not said so."""
        code = await srun.wait()
        ends = [end for end in map(_HOW_IT_ENDED.search, self._words) if end]
        words = "; ".join(self._words) or f"srun ended with {code}"
        if "Node failure" not in words and (ends or code == 0):
            self._code = code if code <= 128 or ends[-1][1] else 128 - code
        else:
            self._lose(f"nobody knows how the step on node {self.node} ended: {words}")

    def _lose(self, why: str) -> None:
        self.lost, self._code = why, LOST

    # --- port.py's Task -------------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Task.alive."""
        return not self._ended.is_set()

    @property
    def gone(self) -> bool:
        """Whether srun has ended too: Slurm has the place back, or has lost the node."""
        return self._watching is not None and self._watching.done()

    async def wait(self) -> int:
        """Task.wait."""
        await self._ended.wait()
        assert self._code is not None
        return self._code

    async def notice(self) -> str:
        """Task.notice: Slurm tells the job, whose SIGTERM ends the run in order."""
        return await asyncio.get_running_loop().create_future()

    async def stop(self, *, grace_s: float, at_once: asyncio.Event | None = None) -> None:
        """Task.stop."""
        if self._watching is None:
            return  # not begun, so nothing is there
        if self.alive and not (at_once and at_once.is_set()):
            self._tell(TERM)
            await _first(self._ended, *([at_once] if at_once else []), within_s=grace_s)
        if self.alive:
            self._tell(KILL)
            await _first(self._ended, within_s=2 * self._node_timeout_s)
        if self.alive:
            self._lose(f"node {self.node} does not say that the task has ended")
            self._watching.cancel()
        await asyncio.wait([self._watching])

    def kill(self, why: str) -> None:
        """Task.kill."""
        self.killed = why
        self._tell(KILL)

    def log_tail(self) -> str:
        """Task.log_tail."""
        return tail(self.log_path)

    def last_words(self) -> str:
        """Task.last_words."""
        return last_words(self.name, self.log_path)

    def _tell(self, byte: bytes) -> None:
        if self._srun and self._srun.stdin and not self._srun.stdin.is_closing():
            with contextlib.suppress(OSError):
                self._srun.stdin.write(byte)

    async def _reap(self, srun: asyncio.subprocess.Process) -> None:
        """Returns when srun is gone, which ends by itself after its task. A step that goes on is killed by SIGTERM to srun;
        where srun itself is killed, a second process of srun's kills the step."""
        signums = (
            [signal.SIGTERM, signal.SIGKILL] if self._code in (None, LOST) else [None, signal.SIGTERM, signal.SIGKILL]
        )
        for signum in signums:
            if signum is not None and srun.returncode is None:
                srun.send_signal(signum)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SRUN_ENDS_WITHIN_S):
                    await srun.wait()
                    break
        if srun.stdin is not None:
            srun.stdin.close()
        if self._relayed is not None:
            self._relayed.close()


async def _first(*events: asyncio.Event, within_s: float) -> None:
    """Returns when one of the events is set, or after `within_s`."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
