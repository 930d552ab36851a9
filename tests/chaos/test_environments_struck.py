"""Real runs of single answers and episodes, whose environments die, hang and answer nonsense while everybody else is struck.

Rows of three kinds: sums with a grader; a game on two servers that are started by hand, of which one lies; and an environment
in the reward's processes that fails now and then (moody.py).
"""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.chaos.environment import LIES, TURNS, command_of
from tests.chaos.episodes import Episodes
from tests.chaos.plan import LIAR, make_episode_plan
from tests.chaos.trial import ROOT
from tests.tiny_model import EOS, PAD, TOKENS

STEPS = 18
ROWS = 400
"""Of each kind: more than a run reads."""

ENVIRONMENTS = f"{{guess: {{environment: external}}, moody: {{environment: '{ROOT}/tests/chaos/moody.py:Moody'}}}}"
SETTINGS = (
    *(f"run.total_steps={STEPS}", f"environments={ENVIRONMENTS}", "data.max_episode_tokens=128"),
    *("rollout.max_turns=4", "rollout.turn_timeout_s=3", "coordinator.score_wait_s=20"),
)


@pytest.fixture(scope="module")
def short_turns(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, of whose tokens six end a turn: an episode has three turns within its budget."""
    path = tmp_path_factory.mktemp("short") / "model"
    shutil.copytree(tiny, path)
    ends = [EOS, *(TOKENS.index(sign) for sign in "01234")]
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends, "pad_token_id": PAD}))
    return path


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sums, games and moods in turn."""
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    kinds = ({"data_source": "mixadd3"}, {"data_source": "game", "environment": "guess"})
    kinds += ({"data_source": "mood", "environment": "moody"},)
    with path.open("w") as lines:
        for number in range(ROWS):
            for kind in kinds:
                row = {"prompt": f"{number}+{number}=", "reward_model": {"ground_truth": str(2 * number)}}
                lines.write(json.dumps(row | kind) + "\n")
    return path


@pytest.mark.chaos
@pytest.mark.timeout(500)
def test_a_run_with_environments_outlasts_whatever_is_done_to_it(
    start_trial, short_turns: Path, rows: Path, tmp_path: Path, episode_seed: int
) -> None:
    plan = make_episode_plan(episode_seed, steps=STEPS)
    print(plan)
    honest, lying = Episodes(tmp_path / "environment-0.told"), Episodes(tmp_path / f"{LIAR}environment.told")

    def beside(coordinator: str) -> list[list[str]]:
        where = {"coordinator": coordinator, "model": short_turns}
        lies_from = episode_seed * len(LIES) // 3
        return [
            command_of("environment-0", told=honest.path, **where),
            command_of(f"{LIAR}environment", told=lying.path, lies_from=lies_from, **where),
        ]

    named = (f"model.path={short_turns}", f"data.train_files=[{rows}]")
    with start_trial(*SETTINGS, *named, beside=beside, episodes=(honest, lying)) as trial:
        trial.carry_out(plan)
        trial.finish()
        told = {event for event in lying.heard if event.startswith("lied")}
        print(f"{len(told)} kinds of lies: {sorted(told)}")
        assert len(told) >= 3
        assert problems_of_episodes(trial.run_dir) == []


def problems_of_episodes(run_dir: Path) -> list[str]:
    """What is wrong with a run's episodes beyond what `problems` of verdict.py looks at."""
    groups = pq.read_table(run_dir / "ledger").to_pylist()
    found = [
        f"{one['group_id']}: {one['term']} without a reason" for one in groups if _failed(one) and not one["fault"]
    ]
    trained = [one for one in groups if one["term"] == "trained"]
    for group in trained:
        turns = [sample["turns"] for sample in group["completions"] or []]
        if group["data_source"] == "mixadd3" and any(turns):
            found.append(f"{group['group_id']}: a single answer has turns: {turns}")
        if group["data_source"] != "mixadd3" and not all(turns):
            found.append(f"{group['group_id']}: an episode has no turns: {turns}")
    kinds = {group["data_source"] for group in trained}
    if kinds != {"mixadd3", "game", "mood"}:
        found.append(f"only rows of {sorted(kinds)} were trained")
    longest = max(sample["turns"] or 0 for group in trained for sample in group["completions"] or [])
    again = [attempt["fault"] for group in groups for attempt in group["attempts"] or [] if attempt["fault"]]
    print(f"{len(again)} tries failed, {len([one for one in groups if _failed(one)])} of {len(groups)} groups")
    print("\n".join(sorted({fault[:150] for fault in again})))
    return found if longest == TURNS else [*found, f"the longest episode has {longest} turns, not {TURNS}"]


def _failed(group: dict[str, object]) -> bool:
    return str(group["term"]).startswith("failed")
