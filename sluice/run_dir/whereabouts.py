"""RUN/coordinator.json: where the run's coordinator is, and the folder with the credentials to call it with, while it is up.

So whoever sees the run directory finds the run, on whatever node its launcher was placed. The file holds no secret.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from sluice.errors import NotFound
from sluice.run_dir.durable import write_synced

FILE = "coordinator.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Whereabouts:
    """How to call a run."""

    address: str
    """host:port of the coordinator."""
    credentials: str
    """The operator's folder; empty for a run without credentials."""


def say_where(run_dir: Path, whereabouts: Whereabouts) -> None:
    """Writes the file. Raises OSError."""
    write_synced(run_dir / FILE, [json.dumps(asdict(whereabouts)).encode()])


def where(run_dir: Path) -> Whereabouts:
    """How to call the run in `run_dir`. Raises NotFound when none is up there."""
    path = run_dir / FILE
    try:
        read = json.loads(path.read_bytes())
        found = Whereabouts(address=read["address"], credentials=read["credentials"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFound(
            f"{run_dir}: must be the directory of a run that `sluice up` keeps up, {path} says no address "
            f"({type(error).__name__}); --coordinator names one"
        ) from error
    if not (isinstance(found.address, str) and isinstance(found.credentials, str)):
        raise NotFound(f"{path}: must hold two texts, address and credentials; --coordinator names a run")
    return found


def forget_where(run_dir: Path) -> None:
    """Takes the file away, if there is one."""
    (run_dir / FILE).unlink(missing_ok=True)
