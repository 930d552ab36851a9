"""python -m sluice.process.placed BEAT_S SILENT_BEATS LOG COMMAND...: one task on a node that a launcher elsewhere has chosen.

Standard input and output lead to the launcher. This program says, a line each: `started`, `alive` after every BEAT_S
seconds of silence, and `ended CODE` with minus the signal's number for a task that a signal has ended. The launcher
answers with single bytes: BEAT for every `alive`, TERM and KILL for a signal to the task's whole session. The task's
output is appended to LOG, which the launcher has made. A node that does not see that file says `unseen`, and the task's
output goes to standard error, to the launcher.

The task ends with the launcher: when standard input ends, or SILENT_BEATS times `alive` got no answer. Silence is counted, not
timed, so that a suspended job is not taken for a silent one.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

from sluice.process.child import armed

SAID = "sluice-task "
"""Begins each line of this program: srun writes lines of its own between them."""

BEAT, TERM, KILL = b".", b"T", b"K"

QUEUES = ("SLURM_", "SRUN_", "PMI_", "PMIX_")
"""Variables that a task does not get: torchrun and MPI take other ways where they believe to be processes of a queue's."""

LAST_BEATS = 3
"""Beats between SIGTERM and SIGKILL for a task whose launcher is gone."""


def main() -> int:
    """Runs the task; returns its exit code as a shell would tell it."""
    beat_s, silent_beats, log_path, *command = sys.argv[1:]
    try:
        log = os.open(log_path, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
        log = sys.stderr.fileno()
        _say(f"unseen {error.strerror}: {log_path}")
    with _signals() as heard:
        task = subprocess.Popen(
            [*armed(signal.SIGKILL), *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={name: value for name, value in os.environ.items() if not name.startswith(QUEUES)},
            start_new_session=True,
        )
        os.set_blocking(1, False)  # a launcher that does not read must not hold this program up
        _say("started")
        _watch(task, heard, beat_s=float(beat_s), silent_beats=int(silent_beats))
    code = task.wait()
    _signal(task, signal.SIGKILL)  # what the task has left behind in its session
    _say(f"ended {code}")
    return code if code >= 0 else 128 - code


def _watch(task: "subprocess.Popen[bytes]", heard: int, *, beat_s: float, silent_beats: int) -> None:
    """Returns when the task has ended. `heard`: a pipe with the number of each signal that this process gets."""
    inputs, unanswered = [0, heard], 0
    while task.poll() is None:
        ready, _, _ = select.select(inputs, [], [], beat_s)
        if heard in ready and signal.SIGTERM in os.read(heard, 512):
            _signal(task, signal.SIGTERM)  # from the queue: a time limit, a preemption, `scancel`
        if 0 in ready:
            told = os.read(0, 512)
            unanswered = 0 if told else silent_beats
            if not told:
                inputs.remove(0)
            for byte, number in ((TERM, signal.SIGTERM), (KILL, signal.SIGKILL)):
                if byte in told:
                    _signal(task, number)
        elif heard not in ready:
            unanswered += 1
            _say("alive")
            if unanswered > silent_beats:
                _signal(task, signal.SIGKILL if unanswered > silent_beats + LAST_BEATS else signal.SIGTERM)


@contextlib.contextmanager
def _signals() -> Iterator[int]:
    """A pipe that the number of each SIGCHLD and SIGTERM is written to."""
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    yield read_fd


def _signal(task: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(task.pid, number)


def _say(what: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more, or the pipe is full
        os.write(1, f"{SAID}{what}\n".encode())


if __name__ == "__main__":
    sys.exit(main())
