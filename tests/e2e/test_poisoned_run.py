"""A run that failed on a batch which no learner can train, as a coordinator left it that checked no answers: started again, it
sets the batch aside and goes on to its end, with the real processes.
"""

import asyncio
import json
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet as pq
import pytest
import yaml

from services.coordinator.storage.redis_store import Store
from services.coordinator.wire.answers import AskedSamples
from sluice.config.load import load_config
from sluice.launch.embedded_redis import start_redis
from sluice.rpc.arrays import pack_floats, pack_ids
from sluice.run_dir.batch_file import poison_files
from sluice.testing.fakes import FakeRollout
from sluice.v1 import common_pb2 as common
from sluice.v1 import rollout_pb2
from tests.chaos.conftest import RECIPE
from tests.chaos.trial import Trial
from tests.integration.coordinator_cases import Cast, coordinator
from tests.liars import lie
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(500)]

STEPS = 3


class PoisoningRollout(FakeRollout):
    """Sends one sample of the run's first group wrong."""

    poison: ClassVar[dict[str, Any]] = {}

    async def sample(self, request: rollout_pb2.GenerateRequest, *others: Any) -> common.Sample:
        sample = await super().sample(request, *others)
        if request.request_id.startswith("run-0000000.") and sample.index == 0:
            lie(sample, self.poison)
        return sample


@pytest.mark.parametrize(
    ("poison", "said"),
    [
        (
            {"token_ids": pack_ids([5, 999_999, 2])},
            "the learner cannot train batch 0: group run-0000000, sample 0: token_ids: must be 0 to 63",
        ),
        ({"logprobs": pack_floats([float("nan")] * 3)}, "the learner died 3 times on batch 0"),
    ],
)
async def test_a_run_that_failed_on_a_poisoned_batch_is_started_again_and_ends_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poison: dict[str, Any], said: str
) -> None:
    recipe, run_dir = _recipe(tmp_path), tmp_path / "run"
    run_dir.mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(AskedSamples, "_fault", lambda *_: "")
        patched.setattr(PoisoningRollout, "poison", poison)
        groups = await _run_that_failed(recipe, run_dir)
    with Trial(recipe, run_dir) as trial:
        await asyncio.to_thread(trial.finish)
    rows = {row["group_id"]: row for row in pq.read_table(run_dir / "ledger").to_pylist()}
    [kept] = poison_files(run_dir)
    assert all(rows[name]["term"] == "failed:poison" for name in groups)
    assert all(rows[name]["fault"].startswith(said) and kept.name in rows[name]["fault"] for name in groups)
    assert json.loads((run_dir / "summary.json").read_text())["groups"]["failed"] == {"poison": len(groups)}


def _recipe(folder: Path) -> Path:
    """That of the chaos suite with one rank, whose learner ends at the first update that is not finite."""
    tree: dict[str, Any] = json.loads(json.dumps(RECIPE))
    tree["run"]["total_steps"] = STEPS
    tree["model"]["path"] = str(write_tiny_model(folder / "model"))
    tree["learner"] |= {"max_skipped_updates": 1, "checkpoint_every_steps": 1}
    tree["launch"] |= {"learner_nproc_per_node": 1, "max_restarts": 3}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree))
    return folder / "recipe.yaml"


async def _run_that_failed(recipe: Path, run_dir: Path) -> list[str]:
    """Writes the directory of a run whose learner was handed batch 0, never came back, and so failed the run; returns the
    groups of the batch.
    """
    config = load_config(recipe)
    redis = await start_redis(run_dir / "redis", log_path=run_dir.parent / "redis.log")
    try:
        cast = Cast(Path(config.model.path), rollout=PoisoningRollout)
        async with cast.standing(), coordinator(config, run_dir, redis.url) as run:
            await cast.register(run)
            batch = await cast.learner.batch(run, 0)
        store = Store(url=redis.url, run_id=run_dir.name)
        await store.open()
        await store.set_meta({"state": "failed", "reason": "learner ended with code 1 once more after 3 restarts"})
        await store.close()
    finally:
        await redis.stop()
    return [part.group.group_id for part in batch[1:]]
