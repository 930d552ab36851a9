"""`sluice agent verifiers` against a real coordinator: rows of a taskset, played by verifiers, trained as they were sampled."""

import asyncio
import json
import shutil
from collections import Counter
from pathlib import Path

import pytest

from sluice.rpc.arrays import unpack_ids
from sluice.v1 import coordinator_pb2 as pb
from tests.integration.agent_cases import Remembering, Taking, check_recorded
from tests.integration.coordinator_cases import Cast, Serve
from tests.needs import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.needs("verifiers")]

SLUICE = ROOT / ".venv-verifiers" / "bin" / "sluice"
TASKSET = ("--taskset", str(ROOT / "tests" / "integration" / "verifiers_tries.py"))
SETTINGS = {
    "environments__mine": {"environment": "agent"},
    "data__environment": "mine",
    "data__max_prompt_length": 40,
    "data__max_response_length": 12,
    "data__max_episode_tokens": 100,
    "data__val_files": [],
    "rollout__turn_timeout_s": 60.0,
    "run__total_steps": 1,
    "network__gateway_port": 0,
    "coordinator__heartbeat_timeout_s": 200.0,
    "algorithm__filter_groups": {"enable": False},  # all say as much
}


async def test_a_taskset_of_verifiers_is_played_and_every_token_is_recorded_as_it_was_sampled(
    serve: Serve, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.jsonl"
    wrote = await asyncio.create_subprocess_exec(SLUICE, "agent", "verifiers-rows", *TASKSET, "--out", out)
    assert await wrote.wait() == 0
    assert len(out.read_text().splitlines()) == 4
    settings = SETTINGS | {"data__train_files": [str(out)]}
    async with Cast(model, rollout=Remembering, reward=Taking).standing() as cast, serve(**settings) as run:
        await cast.register(run)
        async for event in run.stub.WatchEvents(pb.WatchEventsRequest(), timeout=20):
            if event.kind == "agents_awaited":
                break
        command = (
            "--gateway",
            event.message.rpartition(" ")[2],
            "--tokenizer",
            with_template(model, tmp_path / "tokenizer"),
        )
        here = json.dumps({"agent": {"runtime": {"type": "subprocess"}}})
        playing = await asyncio.create_subprocess_exec(SLUICE, "agent", "verifiers", *TASKSET, *command, "--args", here)
        try:
            batch = await cast.learner.batch(run, 0, wait_s=20)
            while len(batch) < 2:
                batch = await cast.learner.batch(run, 0, wait_s=20)
            counts: Counter[str] = Counter()
            for part in batch[1:]:
                counts += check_recorded(part.group, cast.rollout)  # type: ignore[arg-type]
                for sample, reward in zip(part.group.samples, part.group.rewards, strict=True):
                    assert len(unpack_ids(sample.token_ids)) > 6
                    assert sample.score.parts["turns"] == len(sample.turns) == 2
                    assert reward.raw_score == sample.score.parts["length"] > 0
            await cast.learner.commit(run, 0, batch)
            status = await run.until(lambda status: status.state == pb.RUN_STATE_FINISHED)
            assert await playing.wait() == 0
        finally:
            if playing.returncode is None:
                playing.kill()
                await playing.wait()
    assert status.ledger.closed
    assert counts["turns"] == 2 * sum(len(part.group.samples) for part in batch[1:])


def with_template(model: Path, folder: Path) -> Path:
    """The model's tokenizer with a chat template, which the train client needs."""
    folder.mkdir()
    tree = json.loads((model / "tokenizer_config.json").read_text())
    ends = "{% if message['role'] == 'assistant' %}<eos>{% endif %}"
    tree["chat_template"] = "{% for message in messages %}{{ message['content'] }}" + ends + "{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(tree))
    for name in ("tokenizer.json", "config.json"):
        shutil.copy(model / name, folder / name)
    return folder
