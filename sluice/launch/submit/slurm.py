"""`sluice submit --on slurm`: the run's batch script (slurm_text.py), handed in, watched and ended by Slurm's own commands.

A job's id is Slurm's number. Slurm itself forgets a job some minutes after its end (MinJobAge, 300 s); from then on `sacct`
knows its end, where the cluster keeps accounts.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from sluice.errors import ConfigError, LaunchError, NotFound, SluiceError
from sluice.launch.commands import inherited
from sluice.launch.submit.port import JobState, Submission
from sluice.launch.submit.slurm_text import SCRIPT, output_of, rendered
from sluice.process import exit_codes
from sluice.run_dir.private import make_private_folder

_ANSWER_S = 30
"""Above the 10 s that Slurm's commands wait by themselves for a controller that is busy."""
_SETTLES_S = 3.0
"""Within this Slurm's controller has looked at a new job once, and says what keeps it from ever starting."""
_LOOK_EVERY_S = 0.5

_NEVER = re.compile(
    r"Partition(Node|Time|Inactive)\w*|BadConstraints|Invalid\w+|\w+NotAllowed|\w*MaxWall\w*PerJob\w*|\w+MaxNodePerJob\w*"
)
"""Reasons of Slurm for a pending job that waiting does not change; the limits of a job, not of jobs together."""

_FIX = "change the keys of `slurm` in the recipe; `sinfo` lists the partitions and their nodes"

_STATES = {
    "COMPLETED": JobState.FINISHED,
    "CANCELLED": JobState.STOPPED,
    "TIMEOUT": JobState.STOPPED,
    "PREEMPTED": JobState.STOPPED,
    "RUNNING": JobState.RUNNING,
    "COMPLETING": JobState.RUNNING,
    "SUSPENDED": JobState.WAITING,
    "STOPPED": JobState.WAITING,
    "PENDING": JobState.WAITING,
    "CONFIGURING": JobState.WAITING,
    "REQUEUED": JobState.WAITING,
    "REQUEUE_HOLD": JobState.WAITING,
    "SPECIAL_EXIT": JobState.WAITING,
}
"""The others - FAILED, NODE_FAIL, OUT_OF_MEMORY, BOOT_FAIL, DEADLINE - are failures."""


class _Refused(ConfigError):
    """What one of Slurm's commands says no to."""


class SlurmSubmitter:
    """Hands runs to sbatch."""

    name = "slurm"

    def render(self, submission: Submission) -> Mapping[str, str]:
        """Submitter.render."""
        return rendered(submission)

    def submit(self, submission: Submission) -> str:
        """Submitter.submit."""
        script = self.render(submission)[SCRIPT]
        try:
            make_private_folder(
                output_of(submission.run_dir).parent
            )  # Slurm opens the log before the run makes its folders
        except OSError as error:
            raise ConfigError(f"--run-dir: {submission.run_dir} cannot be made here: {error}") from error
        try:
            job = _call("sbatch", "--parsable", said=script).strip().partition(";")[0]
        except _Refused as error:
            raise ConfigError(f"{error}; {_FIX}") from None
        try:
            _refuse_for_ever(job)
        except BaseException:
            _call("scancel", job)
            raise
        return job

    def state(self, job: str) -> JobState:
        """Submitter.state."""
        return state_of(_known(job))

    def stop(self, job: str) -> None:
        """Submitter.stop: SIGTERM to the launcher; a job that waits leaves the queue."""
        if self.state(job) is JobState.RUNNING:
            _call("scancel", "--batch", "--signal=TERM", job)
        else:
            _call("scancel", job)

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        """Submitter.logs."""
        path, read_bytes = Path(_field(_known(job), "StdOut")), 0
        if path == Path(os.devnull):
            raise NotFound(
                f"slurm: has forgotten where job {job} wrote; RUN/logs/launcher.log of its run directory has it"
            )
        while True:
            over = self.state(job) not in (JobState.WAITING, JobState.RUNNING)
            if path.exists():
                with path.open("rb") as log:
                    # A log that has grown too large is emptied by the launcher, and goes on from its start.
                    read_bytes = 0 if log.seek(0, os.SEEK_END) < read_bytes else read_bytes
                    log.seek(read_bytes)
                    for line in log:
                        if not line.endswith(b"\n") and follow and not over:
                            break
                        read_bytes += len(line)
                        yield line.decode(errors="replace").rstrip("\n")
            if over or not follow:
                return
            time.sleep(_LOOK_EVERY_S)


def state_of(said: str) -> JobState:
    """The state in the output of `scontrol show job --oneliner`; a heterogeneous job stands where its first component
    stands.
    """
    state, code = _field(said, "JobState"), int(_field(said, "ExitCode").partition(":")[0] or 0)
    if state == "FAILED" and code == exit_codes.INTERRUPTED:
        return JobState.STOPPED
    return _STATES.get(state, JobState.FAILED)


def never(said: str) -> str:
    """Why Slurm would never start a pending job; empty for one that only waits."""
    reasons = [_field(component, "Reason") for component in said.splitlines()]
    return next(filter(_NEVER.fullmatch, reasons), "") if _field(said, "JobState") == "PENDING" else ""


def _refuse_for_ever(job: str) -> None:
    """Raises ConfigError for a job that Slurm has taken and would never start."""
    give_up_s = time.monotonic() + _SETTLES_S
    while time.monotonic() < give_up_s and state_of(said := _known(job)) is JobState.WAITING:
        if reason := never(said):
            raise ConfigError(f"slurm: would never start this job ({reason}), so it was taken out of the queue; {_FIX}")
        time.sleep(_LOOK_EVERY_S)


def _known(job: str) -> str:
    """`Name=value` pairs of a job, a line a component, from the controller or else from the accounts. Raises NotFound."""
    if not job.isdecimal():
        raise NotFound(f"slurm: a job has a number, got {job!r}; `squeue --me` lists yours")
    with contextlib.suppress(_Refused):
        return _call("scontrol", "show", "job", "--oneliner", job)
    try:
        accounts = _call(
            "sacct", "--noheader", "--allocations", "--parsable2", "--jobs", job, "--format", "State,ExitCode"
        )
    except SluiceError:
        accounts = ""  # no accounting on this cluster
    if not accounts.strip():
        raise NotFound(
            f"slurm: does not know job {job} (any more); the run directory has the run's logs and summary.json"
        )
    state, _, code = accounts.splitlines()[0].partition("|")
    return f"JobState={state.split()[0]} ExitCode={code} StdOut=/dev/null"


def _field(said: str, name: str) -> str:
    found = re.search(rf"(?:^| ){name}=(.*?)(?= \w+=|$)", said, re.MULTILINE)
    return found[1] if found else ""


def _call(*command: str, said: str = "") -> str:
    """What one of Slurm's commands prints. Raises ConfigError for what Slurm refuses, LaunchError for a silent controller."""
    if shutil.which(command[0]) is None:
        raise ConfigError(
            f"slurm: {command[0]} is not on the PATH; run this on a machine that hands jobs to the cluster"
        )
    try:
        done = subprocess.run(
            command, input=said, capture_output=True, text=True, timeout=_ANSWER_S, check=False, env=inherited()
        )
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"slurm: `{command[0]}` has not answered for {_ANSWER_S} s; is the cluster's controller up?"
        ) from None
    if done.returncode == 0:
        return done.stdout
    words = done.stderr.strip().splitlines() or [f"{command[0]} ended with code {done.returncode}"]
    if "nable to contact slurm controller" in done.stderr:
        raise LaunchError(f"slurm: {words[-1]}; is SLURM_CONF right, and the cluster's controller up?")
    raise _Refused(f"slurm: {'; '.join(words)}")
