"""One rank of a learner that computes micro-batches with others: the jobs of learner_rank.py, then a broken exchange.

arguments: MODEL OUT JOBS_JSON; job i's figures go to OUT/i.npz, what each rank says to the broken exchange to
OUT/refusals.txt.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from services.learner.distributed import context_group
from services.learner.distributed.ranks import Ranks, join_ranks
from services.learner.policy import model as policy_model
from services.learner.policy.model import load_policy
from sluice.config.schema import Config
from sluice.errors import ConfigError
from tests.forked import run_ranks
from tests.integration.learner_rank import run_job
from tests.unit.learner.learner_cases import make_config


def on_ranks(model: Path, out: Path, jobs: list[dict[str, Any]], *, ranks: int) -> list[dict[str, np.ndarray]]:
    """Runs the jobs on `ranks` processes and returns what rank 0 wrote of each; `out` is made."""
    out.mkdir()
    run_ranks(main, str(model), str(out), json.dumps(jobs), ranks=ranks, log=out / "ranks.log")
    return [dict(np.load(out / f"{index}.npz")) for index in range(len(jobs))]


def main() -> None:
    """Runs all jobs on this rank."""
    torch.set_num_threads(1)
    model, out, jobs = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
    ranks = join_ranks()
    proved = {name: _once(getattr(policy_model, name)) for name in ("prove", "prove_slices")}
    with mock.patch.multiple(policy_model, **proved):
        for index, job in enumerate(jobs):
            found = run_job(model, job, ranks)
            if ranks.leads:
                np.savez(out / f"{index}.npz", **found)  # pyright: ignore[reportArgumentType]
    said = ranks.hear_all(_refusal(model, jobs[0], ranks))
    if ranks.leads:
        (out / "refusals.txt").write_text("\n".join(said))
    ranks.leave()


def _once(prove: Callable[..., Any]) -> Callable[..., Any]:
    """A proof that is made once for a model and a number of ranks a group; most of a job's time is proofs."""
    known: dict[tuple[str, int], Any] = {}

    def cached(config: Config, *args: Any, **kwargs: Any) -> Any:
        key = (config.model.path, config.learner.context_parallel_size)
        if key not in known:
            known[key] = prove(config, *args, **kwargs)
        return known[key]

    return cached


def _refusal(model: Path, job: dict[str, Any], ranks: Ranks) -> str:
    """What loading says where no part reaches another rank."""
    with mock.patch.object(context_group, "_all_to_all", lambda parts, _: parts):
        try:
            load_policy(make_config(model, **job["config"]), ranks)
        except ConfigError as refused:
            return str(refused)
    return "loaded"
