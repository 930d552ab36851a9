"""A real launcher on a machine whose NVML shows one GPU: who starts when, with which devices, and what `scale` may take."""

import asyncio
from pathlib import Path

import psutil
import pytest

from sluice.client import AsyncClient
from sluice.errors import NotReady
from sluice.launch.run import Run
from sluice.testing import assert_eventually
from tests.integration.coordinator_cases import small_config
from tests.integration.messages_view import Said
from tests.unit.gpus.fake_nvml import machine_of

pytestmark = pytest.mark.integration


async def test_on_one_gpu_the_learner_follows_its_rollout_and_no_other_rollout_starts(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine_of(1).install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    replicas = {"launch__rollout_replicas": "auto", "launch__reward_replicas": 0, "launch__check_reward": False}
    config = small_config(model, network__coordinator_port=0, rollout__engine="transformers", **replicas)
    view = Said()
    run = Run(config=config, run_dir=tmp_path / "run", view=view)
    running = asyncio.create_task(run.run())
    await asyncio.sleep(0)  # the keeper is there

    def learner_runs() -> bool:
        assert not running.done(), view.said
        return run._keeper.child("learner") is not None

    try:
        await assert_eventually(learner_runs, what="the learner starts", within_s=60)
        assert "rollout-0" in run._keeper.known
        visible = {}
        for name in ("rollout-0", "learner"):
            child = run._keeper.child(name)
            assert child is not None
            visible[name] = psutil.Process(child.process.pid).environ()["CUDA_VISIBLE_DEVICES"]  # type: ignore[attr-defined]
        assert visible == {"rollout-0": "0", "learner": "0"}
        assert "  rollout-0  0" in view.said
        async with AsyncClient(run._client.address) as client:
            with pytest.raises(NotReady) as caught:
                await client.scale("rollout", 2)
        refused = "rollout-1 is not started: a rollout needs 1 of the 1 GPUs, and free are: none; end a rollout, or"
        assert f"scale: 1 of 2 rollout replicas: {refused}" in str(caught.value)
        assert any(line.startswith(f"scale rollout 2: {refused}") for line in view.said)
        assert run._keeper.names("rollout") == {"rollout-0"}
        assert "rollout_replicas: 1\n" in (tmp_path / "run" / "config.yaml").read_text()
    finally:
        run._interrupts.first.set()
        run._interrupts.second.set()
        await running
