"""The recipe of demo-llm takes a user's own file as docs/demo-llm.md says: one line a row, its data source unheard of; and a
model is evaluated on such a file without a run."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.conftest import ROOT
from tests.tiny_model import write_tiny_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that has a chat template."""
    path = write_tiny_model(tmp_path_factory.mktemp("model"))
    (path / "chat_template.jinja").write_text("{% for message in messages %}{{ message['content'] }}\n{% endfor %}")
    return path


def write(file: Path, *rows: tuple[str, str], data_source: str = "times", **columns: str) -> None:
    lines = [
        {
            "data_source": data_source,
            "prompt": [{"role": "user", "content": question}],
            "reward_model": {"ground_truth": truth},
            **columns,
        }
        for question, truth in rows
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def sluice(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sluice.cli.main", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def dry_run(model: Path, *files_and_overrides: "Path | str") -> "subprocess.CompletedProcess[str]":
    files = [str(one) for one in files_and_overrides if isinstance(one, Path)]
    settings = [f"model.path={model}", f"data.train_files=[{', '.join(files)}]", "data.max_prompt_length=64"]
    settings += ["network.coordinator_port=0", *(one for one in files_and_overrides if isinstance(one, str))]
    words = [part for setting in settings for part in ("--set", setting)]
    return sluice("up", "-c", str(ROOT / "recipes" / "sums-smollm2.yaml"), "--dry-run", *words)


def test_a_file_of_numbers_needs_nothing_but_its_name(model: Path, tmp_path: Path) -> None:
    """Rows beside them are played in an environment, which scores them, so that they need no grader."""
    write(tmp_path / "my.jsonl", ("3 times 4", "12"), ("5 times 6", "30"), ("7 times 8", "56"))
    write(tmp_path / "acted.jsonl", ("3 + 4", "7"), data_source="acted", environment="again")
    done = dry_run(
        model,
        tmp_path / "my.jsonl",
        tmp_path / "acted.jsonl",
        "environments={again: {environment: second-try, workers: 1}}",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "for times: gold 3 of 3 right" in done.stdout
    assert "environment_checked:   assistant (scripted): 7" in done.stdout
    assert "environment_checked:   done at turn 1: score 1, acc 1, tries 1" in done.stdout
    assert "data, tokenizer and reward are fine" in done.stdout
    assert "environments are fine" in done.stdout


def test_an_environment_that_fails_every_episode_ends_the_dry_run_with_its_error(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "acted.jsonl", ("3 + 4", "7"), environment="calc")
    tools = "environments={calc: {environment: calculator, workers: 1}}"
    done = dry_run(model, tmp_path / "acted.jsonl", tools)
    assert done.returncode == 2
    assert "sluice: environments.calc: the chat template leaves out the tool 'calculate'" in done.stderr


def test_a_model_is_evaluated_on_a_file_without_a_run_and_without_a_learner(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "my.jsonl", ("3 times 4", "12"), ("5 times 6", "30"), ("7 times 8", "56"))
    words = ["--data", str(tmp_path / "my.jsonl"), "-c", str(ROOT / "recipes" / "sums-smollm2.yaml")]
    words += ["--json", str(tmp_path / "r.json"), "--parquet", str(tmp_path / "r.parquet")]
    words += ["--run-dir", str(tmp_path / "kept"), "--set", "rollout.engine=transformers"]
    words += ["--set", "data.max_prompt_length=64", "--set", "launch.check_reward=false"]
    done = sluice("evaluate", "--model", str(model), "--top-p", "0.7", "-n", "4", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    [one] = json.loads((tmp_path / "r.json").read_text())["evaluations"]
    assert (one["set"], one["prompts"], one["n"], one["top_p"], one["ungraded"]) == ("default", 3, 4, 0.7, 0)
    assert 0 <= one["avg_interval"][0] <= one["avg"] <= one["avg_interval"][1] <= 1
    assert done.stdout.splitlines()[1].split()[:3] == ["default", "3", "4"]
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert [(row["prompt"], row["n"], row["graded"]) for row in rows] == [(0, 4, 4), (1, 4, 4), (2, 4, 4)]
    assert "learner" not in " ".join(path.name for path in (tmp_path / "kept" / "logs").iterdir())
