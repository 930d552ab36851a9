"""`sluice rescore` on a recorded run, with the real graders in their processes."""

import asyncio
import io
import json
import os
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.coordinator.state.group import Group, Reward
from services.coordinator.state.ledger_row import accepted_group, ledger_row, queued_row
from services.coordinator.storage.run_files import RunFiles
from services.coordinator.wire.messages import ZstdGroups
from services.reward.rescore import __main__ as program
from sluice.config.load import dump_config
from sluice.run_dir.batch_file import batch_path
from tests.unit.coordinator.fakes import FakePrompt, make_config, make_reward, make_sample

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[2]
ANSWERS = {0: ("Answer: 2", "Answer: 2.0"), 1: ("Answer: 2", "Answer: 3"), 2: ("Answer: 2", "nothing")}
"""By group. `exact` takes the first answer of each for right and no other, as the run recorded."""


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Steps 4 and 5 are kept with two groups and one; step 3 is not, and one group was dropped."""
    folder = tmp_path / "run"
    files = RunFiles(folder)
    groups = [recorded(number, *texts) for number, texts in ANSWERS.items()]
    rows = [queued_row(accepted_group(group, payload_bytes=1), term="trained", step=4) for group in groups[:2]]
    rows += [queued_row(accepted_group(groups[2], payload_bytes=1), term="trained", step=5)]
    rows += [queued_row(accepted_group(recorded(3, "a", "b"), payload_bytes=1), term="trained", step=3)]
    rows += [ledger_row(recorded(4, "a", "b"), term="filtered_all_wrong")]

    async def write() -> None:
        await files.write_ledger(rows, after=0, most=100)
        for step, of_step in ((4, groups[:2]), (5, groups[2:])):
            staged = await files.stage_batch(step, payloads=[ZstdGroups().encode(group) for group in of_step])
            await files.name_batch(step, staged.digest)

    asyncio.run(write())
    config = make_config(reward__routes={"sums": "exact"}, reward__workers=1)
    (folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
    return folder


def recorded(number: int, *texts: str) -> Group:
    prompt = FakePrompt(prompt_id=f"p{number}", data_source="sums", ground_truth="2")
    samples = {index: replace(make_sample(index), text=text) for index, text in enumerate(texts)}
    return Group(
        group_id=f"run-{number:07d}",
        admission=number,
        prompt=prompt,
        cursor="",
        samples=samples,
        rewards=[_reward(float(index == 0), text) for index, text in enumerate(texts)],
    )


def _reward(acc: float, text: str) -> Reward:
    """As `exact` scores it."""
    return replace(make_reward(acc), extracted=text.removeprefix("Answer: "), grader="exact", grader_version="1")


def rescore(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`sluice rescore` without the seconds of its processes' imports; its graders are processes."""
    with (
        pytest.MonkeyPatch.context() as patched,
        capture_logs() as logs,
        chdir(cwd),
        redirect_stdout(io.StringIO()) as output,
        redirect_stderr(io.StringIO()) as errors,
    ):
        patched.setattr(program, "configure_logs", lambda **_: None)
        code = program.main([*map(str, arguments)])
    told = "".join(f"{line}\n" for line in logs if line["log_level"] == "error")
    return subprocess.CompletedProcess(arguments, code, output.getvalue(), errors.getvalue() + told)


def sluice_rescore(*arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "sluice.cli.main", "rescore", *map(str, arguments)]
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(argv, cwd=cwd, env=environ, capture_output=True, text=True, timeout=100, check=False)


def figures_of(run_dir: Path, *arguments: object, cwd: Path = ROOT) -> dict:
    out = run_dir.parent / "figures.json"
    done = sluice_rescore(run_dir, "--json", out, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


def test_the_graders_of_the_run_say_what_they_said(run_dir: Path) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    figures = figures_of(run_dir)
    assert (figures["samples"], figures["groups"], figures["steps"]) == (6, 3, [4, 5])
    assert figures["graders"] == {"before": {"exact 1": 6}, "after": {"exact 3": 6}}
    assert figures["changed_samples"] == figures["changed_groups"] == []
    assert figures["not_covered"] == {"trained": 1, "filtered_all_wrong": 1}
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_another_grader_shows_which_verdicts_and_which_groups_change(run_dir: Path) -> None:
    done = rescore(run_dir, "--set", "reward.routes={sums: numeric}")
    assert done.returncode == 0, done.stderr
    for part in (
        "6 samples of 3 groups scored again (2 batches, steps 4 to 5)",
        "wrong -> right: 1\n    run-0000000 sample 1: '2.0' -> '2.0', ground truth '2'",
        "wrong -> unparsed: 1\n    run-0000002 sample 1: 'nothing' -> 'nothing', ground truth '2'",
        "kept -> filtered_all_right: 1 (run-0000000)",
        "not covered, no texts are kept of them: 1 filtered_all_wrong, 1 trained",
    ):
        assert part in done.stdout, done.stdout


def test_a_whole_recipe_may_be_given_with_a_function_of_ones_own_and_its_shaping(run_dir: Path) -> None:
    folder = run_dir.parent
    (folder / "mine.py").write_text(
        "VERSION = 3\ndef score(solution_str): return {'score': 0.5, 'length': len(solution_str)}\n"
    )
    shaping = {"enable": True, "len": 6, "penalty_factor": 0.3}
    config = make_config(reward__routes={"*": "mine.py:score"}, reward__overlong_buffer=shaping)
    (folder / "recipe.yaml").write_text(dump_config(config), encoding="utf-8")
    figures = figures_of(run_dir, "-c", "recipe.yaml", cwd=folder)
    assert figures["graders"]["after"] == {"mine.py:score 3": 6}
    assert {pair["after"] for pair in figures["verdicts"]} == {"partly right"}
    means = figures["means"]
    # Four tokens of eight allowed: two into the buffer of six, a third of the penalty.
    assert (means["raw_score"]["after"], round(means["shaped_reward"]["after"], 6)) == (0.5, 0.4)
    assert [group["after"] for group in figures["changed_groups"]] == ["filtered_other"] * 3


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--set", "reward.routes={sums: 'absent.py:score'}"], 2, "reward.routes.sums: absent.py is not a file"),
        (["--set", "reward.routes={sums: 'json:loads'}"], 1, "no sample could be graded, 4 were tried: "),
        (["--set", "reward.speed=1"], 2, "reward.speed: is not a known key"),
        (["--json", "/nowhere/at/all.json"], 2, "--json: the folder /nowhere/at does not exist"),
    ],
)
def test_what_cannot_be_done_is_said(run_dir: Path, arguments: list[str], code: int, said: str) -> None:
    done = rescore(run_dir, *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_recipe_without_a_route_for_the_recorded_data_is_refused_by_name(run_dir: Path) -> None:
    recipe = run_dir.parent / "recipe.yaml"
    recipe.write_text(dump_config(make_config(reward__routes={"other": "exact"})), encoding="utf-8")
    done = rescore(run_dir, "--config", recipe)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no verifier for 'sums'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_without_batches_and_a_damaged_one_are_named(run_dir: Path) -> None:
    path = batch_path(run_dir, 5)
    path.write_bytes(path.read_bytes()[:-9])
    damaged = rescore(run_dir)
    assert damaged.returncode == 1
    assert f"batch 5: {path} is damaged" in damaged.stderr
    for path in (run_dir / "batches").iterdir():
        path.unlink()
    empty = rescore(run_dir)
    assert (empty.returncode, empty.stderr) == (
        1,
        f"sluice: {run_dir}/batches: holds no batch; a run writes one for every step, with the texts of its groups\n",
    )
    assert "no such run directory" in rescore(run_dir / "absent").stderr
    assert "RUN_DIR: must be the directory of a run" in rescore(run_dir.parent).stderr
