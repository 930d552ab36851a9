"""A run for a real learner: a tiny model, and a fake coordinator that hands out batches of 6 groups of 4."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sluice.testing.fakes import FakeCoordinator, serving
from sluice.v1 import common_pb2
from tests.unit.learner.learner_cases import groups_to_wire, make_batch, make_config, write_tiny_model


def tiny_coordinator(
    folder: Path, *, run_dir: Path | None = None, ready: int = 0, end: int = 10_000, **sections: Mapping[str, Any]
) -> FakeCoordinator:
    """The base model is folder/base, the run folder/run if `run_dir` is not another; `sections` are settings."""
    model = write_tiny_model(folder / "base")
    (model / "tokenizer.json").write_text("{}")
    run_dir = run_dir or folder / "run"
    run_dir.mkdir(exist_ok=True)
    return FakeCoordinator(config=make_config(model, **sections), run_dir=run_dir, batches=_batch, ready=ready, end=end)


@asynccontextmanager
async def serving_a_tiny_run(folder: Path, **learner: Any) -> AsyncIterator[tuple[FakeCoordinator, str]]:
    """Such a coordinator and its address; `learner` are settings."""
    settings = {"mini_batch_size": 3, "max_tokens_per_micro_batch": 64, "lr": 1e-2} | learner
    fake = tiny_coordinator(folder, learner=settings)
    async with serving(fake) as address:
        yield fake, address


def _batch(step: int) -> Sequence[common_pb2.Group]:
    return groups_to_wire(make_batch(step=step, groups=6, n=4))
