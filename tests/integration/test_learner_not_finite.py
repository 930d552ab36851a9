"""Weights that are no numbers any more reach nobody."""

import asyncio
import json
from pathlib import Path

import pytest

from sluice.testing.fakes import serving
from tests.integration.service_process import learner
from tests.integration.tiny_run import tiny_coordinator

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


async def test_weights_that_are_not_finite_are_neither_committed_nor_saved_and_end_the_learner_with_one_message(
    tmp_path: Path,
) -> None:
    # The gradient is fine, the step taken along it leaves the range of float32.
    settings = {"lr": 1e39, "warmup_steps": 0, "checkpoint_every_steps": 1}
    fake = tiny_coordinator(tmp_path, ready=1, learner=settings)
    async with (
        serving(fake) as address,
        learner(address, "--log-format", "json", piped=True) as process,
        asyncio.timeout(60),
    ):
        _, stderr = await process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in stderr.decode()
    lines = [json.loads(line) for line in stderr.splitlines() if line.startswith(b"{")]
    (failed,) = [line for line in lines if line["level"] in ("error", "critical")]
    assert failed["reason"].startswith("version a1 is not published: ")
    assert len(fake.registrations) == 1  # it got as far as training
    assert (fake.commits, fake.checkpoints) == ([], [])
    assert not (tmp_path / "run" / "checkpoints").exists()
