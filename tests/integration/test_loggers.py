"""TensorBoard, MLflow and W&B get a run's lines: through a real coordinator, read back with the packages themselves."""

import asyncio
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.coordinator.loggers import all_loggers as loggers_module
from services.coordinator.loggers.all_loggers import open_loggers
from sluice.config.schema import Config
from sluice.launch.embedded_redis import EmbeddedRedis
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.coordinator_cases import Cast, coordinator, small_config
from tests.tiny_model import write_tiny_model

pytestmark = pytest.mark.integration


@pytest.fixture(autouse=True)
def _a_slow_machine_is_waited_for_and_nothing_leaves_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(loggers_module, "CLOSE_WITHIN_S", 120.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # W&B keeps logs of its own there
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def step(number: int, value: float) -> dict[str, Any]:
    return {"kind": "step", "step": number, "time_s": 1000.0 + number, "lineage": "a", "reward/generated_acc": value}


def config_of(logger: str) -> Config:
    return small_config(Path("unused"), run__name="demo", run__loggers=[logger])


async def run_three_steps(folder: Path, redis_url: str, logger: str) -> None:
    model = write_tiny_model(folder / "model")
    config = small_config(model, run__loggers=[logger])
    async with Cast(model).standing() as cast, coordinator(config, folder / "run", redis_url) as run:
        await cast.register(run)
        await cast.learner.train(run, range(3))
        await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)


def tensorboard_scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return [(event.step, round(event.value, 6)) for event in events.Scalars(tag)]


async def test_a_runs_steps_and_evaluations_are_in_tensorboard(tmp_path: Path, redis_server: EmbeddedRedis) -> None:
    await run_three_steps(tmp_path, redis_server.url, "tensorboard")
    run_dir = tmp_path / "run"
    assert tensorboard_scalars(run_dir, "loss/entropy_nats") == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert tensorboard_scalars(run_dir, "ledger/closed") == [(1, 1.0), (2, 1.0), (3, 1.0)]
    assert tensorboard_scalars(run_dir, "eval/avg_at_n") == [(0, 0.5), (3, 0.5)]


async def test_tensorboard_goes_on_where_a_run_is_resumed_and_forgets_what_was_rolled_back(tmp_path: Path) -> None:
    for trained_steps, values in ((0, (0.1, 0.2, 0.3)), (3, (0.4, 0.5)), (2, (0.6,))):
        loggers = open_loggers(config_of("tensorboard"), run_dir=tmp_path, trained_steps=trained_steps)
        for place, value in enumerate(values, start=trained_steps):
            loggers.put(step(place, value))
        await loggers.close()
        assert loggers.dropped == 0
    assert len(list((tmp_path / "tensorboard").iterdir())) == 3
    assert tensorboard_scalars(tmp_path, "reward/generated_acc") == [(1, 0.1), (2, 0.2), (3, 0.6)]


async def test_mlflow_has_one_run_which_later_coordinators_go_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    from mlflow import MlflowClient

    for trained_steps in (0, 1):
        loggers = open_loggers(config_of("mlflow"), run_dir=tmp_path / "demo-1", trained_steps=trained_steps)
        loggers.put(step(trained_steps, 0.5))
        await loggers.close()
        assert loggers.dropped == 0
    client = MlflowClient()
    experiment = client.get_experiment_by_name("demo")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "reward/generated_acc")
    assert sorted((metric.step, metric.value) for metric in history) == [(1, 0.5), (2, 0.5)]
    assert (run.info.run_name, run.info.status) == ("demo-1", "FINISHED")
    assert run.data.params["data.train_batch_size"] == "4"


async def test_wandb_takes_lines_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    run_dir = tmp_path / "demo-1"
    run_dir.mkdir()
    loggers = open_loggers(config_of("wandb"), run_dir=run_dir, trained_steps=0)
    loggers.put(step(0, 0.25))
    loggers.put({"kind": "eval", "version": 0, "time_s": 1.0, "eval/avg_at_n": 0.125})  # of before that step
    await loggers.close()
    assert loggers.dropped == 0
    await asyncio.to_thread(wandb.teardown)  # what `finish` has handed to W&B's own process is on the disk only then
    (written,) = run_dir.glob("wandb/offline-run-*/run-demo-1.wandb")
    assert [(row["trained_steps"], row.get("eval/avg_at_n")) for row in wandb_rows(written)] == [(1, None), (0, 0.125)]


def leveldb_records(body: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, behind W&B's 7 bytes of its own."""
    place, record = 7, b""
    while place < len(body):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", body, place)
        record += body[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


def wandb_rows(path: Path) -> list[dict[str, Any]]:
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            rows.append({item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item})
    return rows
