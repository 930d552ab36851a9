"""Checks at the start that all ranks see one run directory and one model.

Each rank writes its shard of a checkpoint to the run directory and cuts its shard of the model out of its own copy of
`model.path`: machines that see different folders would train and save parts that do not belong together.
"""

import socket
import uuid
from pathlib import Path

from services.learner.distributed.ranks import Ranks
from sluice.clock import SystemClock
from sluice.errors import ConfigError
from sluice.model_identity import model_identity
from sluice.process.node_check import run_dir_problem
from sluice.run_dir.full_disk import DiskWaits


def check_shared_folders(ranks: Ranks, *, run_dir: Path, model_path: str) -> None:
    """Collective. Raises the same ConfigError on every rank, with the ranks whose folders differ from rank 0's."""
    if ranks.size == 1:
        return
    # A fresh file name: network file systems remember for a while that a name was missing.
    mark = run_dir / f".learner-{uuid.uuid4().hex}"
    if ranks.leads:
        DiskWaits(clock=SystemClock()).write_blocking(mark.write_text, mark.name)
    (name, leaders_model) = ranks.share_texts([mark.name, _model_facts(model_path)])
    problems = ranks.hear_all("\n".join(_problems(run_dir / name, model_path, leaders_model)))
    if ranks.leads:
        mark.unlink()
    if found := [problem for problem in problems if problem]:
        raise ConfigError("\n".join(found))


def _problems(mark: Path, model_path: str, leaders_model: str) -> list[str]:
    host, found = socket.gethostname(), []
    if problem := run_dir_problem(str(mark.parent), mark.name):
        found.append(problem)
    if (facts := _model_facts(model_path)) != leaders_model:
        found.append(
            f"model.path: {model_path} on {host} must hold the model that the learner's first machine has, "
            f"got {facts} instead of {leaders_model}; copy it there or share it"
        )
    return found


def _model_facts(path: str) -> str:
    """Facts about the files of a model folder by which a wrong or an unfinished copy shows."""
    try:
        identity = model_identity(path)
    except ConfigError as error:
        return str(error)
    weights = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    return f"config {identity.model_hash[:12]}, tokenizer {identity.tokenizer_hash[:12]}, {weights} bytes of weights"
