"""The queue that `--on` names. A queue's library is imported only where that queue is chosen."""

import importlib
from typing import TYPE_CHECKING

from sluice.errors import LaunchError

if TYPE_CHECKING:  # so that `sluice --help` is instant
    from sluice.launch.submit.port import Submitter

_CLASSES = {"ray": "RaySubmitter", "slurm": "SlurmSubmitter", "kubernetes": "KubernetesSubmitter"}
"""By the values of `--on`; each class lies in a module of that name."""

NAMES = tuple(_CLASSES)


def submitter_of(name: str) -> "Submitter":
    """The submitter that `--on` calls `name`. Raises LaunchError when what it is made of is not installed."""
    try:
        return getattr(importlib.import_module(f"sluice.launch.submit.{name}"), _CLASSES[name])()
    except ModuleNotFoundError as error:
        raise LaunchError(f"--on {name} needs the module {error.name}, which is not installed here") from error
