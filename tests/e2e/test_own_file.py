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


def write(file: Path, *rows: tuple[str, str]) -> None:
    lines = [
        {
            "data_source": "times",
            "prompt": [{"role": "user", "content": question}],
            "reward_model": {"ground_truth": truth},
        }
        for question, truth in rows
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def sluice(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "sluice.cli.main", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_a_file_of_numbers_needs_nothing_but_its_name(model: Path, tmp_path: Path) -> None:
    write(tmp_path / "my.jsonl", ("3 times 4", "12"), ("5 times 6", "30"), ("7 times 8", "56"))
    settings = [f"model.path={model}", f"data.train_files=[{tmp_path / 'my.jsonl'}]", "data.max_prompt_length=64"]
    settings.append("network.coordinator_port=0")
    words = [part for setting in settings for part in ("--set", setting)]
    done = sluice("up", "-c", str(ROOT / "recipes" / "sums-smollm2.yaml"), "--dry-run", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "for times: gold 3 of 3 right" in done.stdout
    assert "data, tokenizer and reward are fine" in done.stdout


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
