"""The queue that `--on` names. A queue's library is imported only where that queue is chosen."""

import importlib

from sluice.launch.submit.port import Submitter

_CLASSES = {"ray": "RaySubmitter", "slurm": "SlurmSubmitter", "kubernetes": "KubernetesSubmitter"}
"""By the values of `--on`; each class lies in a module of that name."""

NAMES = tuple(_CLASSES)


def submitter_of(name: str) -> Submitter:
    """The submitter that `--on` calls `name`."""
    return getattr(importlib.import_module(f"sluice.launch.submit.{name}"), _CLASSES[name])()
