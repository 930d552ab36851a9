"""`sluice submit --on ray`: a job of Ray's job API, whose entrypoint is `sluice up --on ray` on the cluster's head.

What the job gets is a runtime environment - the one that `ray job submit --runtime-env FILE` takes - and that command. Ray ends
a job by SIGTERM to all its processes at once, Redis among them; `stop` tells the launcher alone, which ends the run in order.
"""

import asyncio
import contextlib
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sluice.errors import ConfigError, LaunchError, NotFound, SluiceError
from sluice.launch.engines.ray_address import reach
from sluice.launch.submit.port import JobState, Submission
from sluice.process import exit_codes

DASHBOARD = "http://localhost:8265"
"""Where Ray's own command looks without RAY_API_SERVER_ADDRESS and RAY_ADDRESS."""
TOLD_S, ASK_S = 60.0, 0.5
"""Limit for the launcher to be told to stop, and how often Ray is asked whether it was."""

_FIX = "start one with `ray start --head`, or name its dashboard: RAY_API_SERVER_ADDRESS=http://HOST:8265"
_STATES = {
    "PENDING": JobState.WAITING,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.FINISHED,
    "STOPPED": JobState.STOPPED,
}
_ENDED = (JobState.FINISHED, JobState.FAILED, JobState.STOPPED)


class RaySubmitter:
    """Submitter of `--on ray`."""

    name = "ray"

    def render(self, submission: Submission) -> Mapping[str, str]:
        """Submitter.render: the runtime environment, and the entrypoint."""
        environment = runtime_environment(submission)
        text = yaml.safe_dump(environment, sort_keys=False, allow_unicode=True)
        return {"runtime_env.yaml": text, "entrypoint.sh": entrypoint(submission, environment) + "\n"}

    def submit(self, submission: Submission) -> str:
        """Submitter.submit. Uploads the working directory."""
        environment = runtime_environment(submission)
        client = _client()
        try:
            return client.submit_job(
                entrypoint=entrypoint(submission, environment),
                runtime_env=environment,
                metadata={"job_name": submission.name},
            )
        except (ValueError, TypeError) as error:
            raise ConfigError(f"Ray refuses the runtime environment: {_first_line(error)}") from error
        except Exception as error:
            raise LaunchError(f"Ray does not take the job: {_first_line(error)}") from error

    def state(self, job: str) -> JobState:
        """Submitter.state."""
        with _answering():
            return _state(_details(_client(), job))

    def stop(self, job: str) -> None:
        """Submitter.stop: SIGTERM to the launcher, by a job on the launcher's node; a job without a launcher yet is ended."""
        with _answering():
            client = _client()
            details = _details(client, job)
            if _state(details) in _ENDED:
                return
            if details.driver_info is None or not _told(client, details):
                client.stop_job(job)

    def logs(self, job: str, *, follow: bool) -> Iterator[str]:
        """Submitter.logs."""
        with _answering():
            yield from self._logs(job, follow=follow)

    def _logs(self, job: str, *, follow: bool) -> Iterator[str]:
        client = _client()
        _details(client, job)
        if not follow:
            yield from client.get_job_logs(job).splitlines()
            return
        part = ""
        with asyncio.Runner() as runner:
            pieces = client.tail_job_logs(job)
            while (piece := runner.run(_next(pieces))) is not None:
                *lines, part = (part + piece).split("\n")
                yield from lines
        if part:
            yield part


def runtime_environment(submission: Submission) -> dict[str, Any]:
    """The template as it is, else this folder as the working directory; with time for a run to end in order.

    Raises ConfigError for a template that is no runtime environment.
    """
    environment: dict[str, Any] = {"working_dir": "."}
    if submission.template is not None:
        environment = _read(submission.template)
    stop_s = f"{submission.config.launch.grace_s * 2 + 10:.0f}"  # the run's own ending, then its processes'
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": stop_s, **(environment.get("env_vars") or {})}
    return {**environment, "env_vars": variables}


def entrypoint(submission: Submission, environment: Mapping[str, Any]) -> str:
    """The command that the job runs, in the working directory's copy where there is one."""
    command = ["sluice", "up", "--on", "ray", "--plain", "-c", _recipe_there(submission.recipe, environment)]
    command += ["--run-dir", str(submission.run_dir)]
    return shlex.join([*command, *(part for override in submission.overrides for part in ("--set", override))])


def _recipe_there(recipe: Path, environment: Mapping[str, Any]) -> str:
    """The recipe's path for the job: relative where the working directory carries it, else as it is on this machine."""
    folder = str(environment.get("working_dir") or "")
    if folder and "://" not in folder and recipe.resolve().is_relative_to(Path(folder).resolve()):
        return str(recipe.resolve().relative_to(Path(folder).resolve()))
    return str(recipe)


def _read(path: Path) -> dict[str, Any]:
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--template: {path} cannot be read: {_first_line(error)}") from error
    if not isinstance(read, dict):
        raise ConfigError(
            f"--template: {path} must be a runtime environment of Ray, a mapping such as `working_dir: .`"
        )
    variables = read.get("env_vars") or {}
    if not isinstance(variables, dict):
        raise ConfigError(f"--template: {path}: env_vars must be a mapping, got {variables!r}")
    for name, value in variables.items():
        if not isinstance(value, str):
            raise ConfigError(
                f'--template: {path}: env_vars.{name} must be a string, got {value!r}; write {name}: "{value}"'
            )
    return read


def _client() -> Any:
    """A client of the cluster's job API. Raises ConfigError without Ray, LaunchError without a cluster."""
    try:
        from ray.job_submission import JobSubmissionClient
    except ModuleNotFoundError as error:
        raise ConfigError("--on ray needs the package ray: pip install 'sluice-rl[ray]'") from error
    variable = next((name for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS") if os.environ.get(name)), "the default")
    address = os.environ.get(variable, DASHBOARD)
    bare = address.partition("://")[2] if "://" in address else address
    reach(bare.rstrip("/"), variable=variable, fix=_FIX)
    try:
        return JobSubmissionClient(address)
    except Exception as error:
        raise LaunchError(
            f"the job API at {address} ({variable}) cannot be used: {_first_line(error)}; {_FIX}"
        ) from error


@contextlib.contextmanager
def _answering() -> Iterator[None]:
    """Turns what Ray's client raises, among it the errors of its HTTP library, into LaunchError."""
    try:
        yield
    except SluiceError:
        raise
    except Exception as error:
        raise LaunchError(f"Ray's job API does not answer as it should: {_first_line(error)}; {_FIX}") from error


def _details(client: Any, job: str) -> Any:
    try:
        return client.get_job_info(job)
    except RuntimeError as error:
        if "404" in str(error):
            raise NotFound(
                f"Ray knows no job {job} at {client.get_address()}; `ray job list` has those it knows"
            ) from error
        raise LaunchError(f"Ray does not answer about job {job}: {_first_line(error)}") from error


def _state(details: Any) -> JobState:
    """Ray says FAILED of a run that was interrupted."""
    interrupted = details.driver_exit_code == exit_codes.INTERRUPTED
    return _STATES.get(details.status.value, JobState.STOPPED if interrupted else JobState.FAILED)


def _told(client: Any, details: Any) -> bool:
    """Has SIGTERM sent to a job's launcher, whose process Ray knows; returns whether it was sent."""
    node = {"ray.io/node-id": details.driver_node_id} if details.driver_node_id else None
    telling = client.submit_job(
        entrypoint=f"kill -TERM {int(details.driver_info.pid)} && echo told",
        metadata={"job_name": f"stop {details.submission_id}"},
        entrypoint_label_selector=node,
    )
    give_up_s = time.monotonic() + TOLD_S
    while _state(_details(client, telling)) not in _ENDED:
        if time.monotonic() > give_up_s:
            return False
        time.sleep(ASK_S)
    told = "told" in client.get_job_logs(telling).splitlines()  # Ray may say FAILED of a job as short as this one
    client.delete_job(telling)
    return told


async def _next(pieces: Any) -> str | None:
    return await anext(pieces, None)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
