"""What was submitted from this machine: a small file each under the user's cache, by which later commands find a job.

A file holds names and paths, no secret: the queue, the job's id in the queue's words, the run directory on the cluster.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sluice.cli.up import cache_dir
from sluice.errors import ConfigError, LaunchError, NotFound
from sluice.launch.submit.choice import NAMES


@dataclass(frozen=True, kw_only=True, slots=True)
class Submitted:
    """A run that was handed in."""

    on: str
    """The queue: a value of `--on`."""
    job: str
    """Empty run_dir and name: a job that was not handed in from here, known by its id alone."""
    name: str = ""
    run_dir: str = ""
    credentials: str = ""
    """The operator's folder, where the run has credentials on this machine."""

    @property
    def label(self) -> str:
        """What `--job` takes."""
        return f"{self.on}/{self.job}"


def remember(submitted: Submitted) -> None:
    """Keeps the record. Raises LaunchError where it cannot be written; the job stays handed in."""
    path = _folder() / f"{submitted.on}-{submitted.name}.json"
    try:
        path.write_text(json.dumps(asdict(submitted), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise LaunchError(
            f"{submitted.label} is handed in; {path}, by which `sluice status --job` would find it, cannot be written: {error}"
        ) from error


def find(job: str) -> Submitted:
    """The run that `--job` means: QUEUE/ID, or the name of a run that was handed in from here.

    Raises NotFound with those there are, ConfigError for a name that two queues have.
    """
    known = _all()
    if by_label := [one for one in known if one.label == job]:
        return by_label[0]
    on, _, rest = job.partition("/")
    if on in NAMES and rest:
        return Submitted(on=on, job=rest)
    named = [one for one in known if one.name == job]
    if len(named) == 1:
        return named[0]
    if named:
        raise ConfigError(f"--job: {job} is the name of {' and '.join(one.label for one in named)}; give one of these")
    listed = ", ".join(one.label for one in known) or "nothing"
    raise NotFound(
        f"--job: must be QUEUE/ID ({', '.join(NAMES)}) or a name that was submitted from here, got {job}; here was {listed}"
    )


def _all() -> list[Submitted]:
    found = []
    for path in sorted(_folder().glob("*.json")):
        try:
            found.append(Submitted(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            continue  # of another version, or half written: the queue knows the job all the same
    return found


def _folder() -> Path:
    folder = cache_dir() / "submitted"
    folder.mkdir(exist_ok=True)
    return folder
