"""A whole run graded by examples/reward-typescript and played in examples/environment-typescript.

The run's own reward services are none. Half of the rows are sums, half are the game.
"""

import json
import os
import re
import signal
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import until
from tests.tiny_model import EOS, TOKENS, write_tiny_model
from tests.typescript_example import ENVIRONMENT_EXAMPLE, typescript_service

pytestmark = [pytest.mark.e2e, pytest.mark.needs("typescript-example"), pytest.mark.timeout(300)]

STEPS, LONGEST = 4, 31


def write_model(path: Path) -> Path:
    """One that knows the game's letters, and whose turns are short: the first digit up to 4 ends a turn."""
    write_tiny_model(path)
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    (path / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "Lowercase"}}))
    ends = [EOS, *(TOKENS.index(digit) for digit in "01234")]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return path


def write_rows(path: Path) -> Path:
    """Sums as the demo has them, and games of small numbers."""
    sums = [
        {"data_source": "mixadd3", "prompt": f"{a}+{a}+{a}=", "reward_model": {"ground_truth": str(3 * a)}}
        for a in range(1, 40)
    ]
    games = [
        {"data_source": "game", "prompt": f"game {number}", "reward_model": {"ground_truth": "any"}}
        | {"environment": "guess", "env_args": {"highest": 2 + number % 8}}
        for number in range(1, 40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for pair in zip(sums, games, strict=True) for row in pair))
    return path


def test_a_run_has_both_even_when_the_coordinator_is_killed(start_run, tmp_path: Path) -> None:
    run = start_run(
        "launch.reward_replicas=0",
        "rollout.engine=transformers",
        f"run.total_steps={STEPS}",
        f"model.path={write_model(tmp_path / 'model')}",
        f"data.train_files=[{write_rows(tmp_path / 'rows.jsonl')}]",
        *("environments={guess: {environment: external}}", "algorithm.filter_groups.enable=false"),
        *("data.max_prompt_length=96", f"data.max_response_length={LONGEST}", "data.max_episode_tokens=128"),
        *("data.train_batch_size=4", "learner.mini_batch_size=4", "learner.checkpoint_every_steps=2"),
        *("data.val_files=[]", "eval.every_steps=0"),
    )
    waits = re.compile(r"launch\.reward_replicas is 0: waiting 300 s for a reward to register with (\S+)")
    until(run, lambda: waits.search(run.output()) is not None)
    found = waits.search(run.output())
    assert found is not None
    grading = ("--coordinator", found[1], "--service-id", "graders-0")
    hosting = ("--coordinator", found[1], "--service-id", "games-0")
    with (
        typescript_service(tmp_path / "reward.log", *grading) as graders,
        typescript_service(tmp_path / "environment.log", *hosting, example=ENVIRONMENT_EXAMPLE) as games,
    ):
        metrics = run.run_dir / "metrics.jsonl"
        until(run, lambda: metrics.exists() and '"kind":"step"' in metrics.read_text())
        assert run.pids("-m", "services.reward") == []
        os.kill(run.pids("-m", "services.coordinator")[0], signal.SIGKILL)
        assert run.wait(timeout_s=180) == 0, run.output()
        for service, name in ((graders, "graders-0"), (games, "games-0")):
            assert service.end() == 0, service.output()
            registered = service.said("registered")
            assert len(registered) >= 2, "again with the coordinator that was started anew"
            assert {line["serviceId"] for line in registered} == {name}

    summary = json.loads((run.run_dir / "summary.json").read_text())
    assert summary["steps"] == STEPS
    assert summary["groups"]["closed"] is True
    rows = [row for row in pq.read_table(run.run_dir / "ledger").to_pylist() if row["term"] == "trained"]
    assert len(rows) == STEPS * 4
    completions = [one for row in rows for one in row["completions"]]
    graded = [one for one in completions if not one["turns"]]
    played = [one for one in completions if one["turns"]]
    assert len(graded) + len(played) == len(completions) == STEPS * 4 * 8
    assert graded
    assert any(one["turns"] > 1 and one["observed_tokens"] for one in played)
    for one in graded:
        assert one["grader"] == "number-typescript 1"
        # DAPO eq. 13 with the recipe's buffer: 24 tokens, factor 1.
        assert one["overlong_penalty"] == pytest.approx(-min(max(one["tokens"] - (LONGEST - 24), 0) / 24, 1))
    for one in played:
        assert one["raw_score"] in (0.0, 1.0)
        heard = json.loads(one["parts"])["turns"]
        assert heard - one["turns"] in (0, 1), "where no room is left for a turn, the game hears of an empty one"
    for one in completions:
        assert one["shaped_reward"] == one["raw_score"] + one["overlong_penalty"]
    assert any(one["overlong_penalty"] < 0 for one in graded)
    assert run.left_behind() == []
