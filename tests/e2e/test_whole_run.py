"""The four real processes, real vLLM, real Redis, real FSDP2: a few steps of the demo, with and without accidents."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.chaos.verdict import problems
from tests.e2e.conftest import ENVIRON, ROOT, Run, left_behind, until
from tests.otlp_lines import spans_of
from tests.unit.docs.pages import blocks

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

GROUPS = 20  # data.train_batch_size of the demo recipe
TINY = ("eval.prompts=16", "eval.n=2", "eval.every_steps=0", "learner.checkpoint_every_steps=2")


def steps_trained(run: Run) -> int:
    path = run.run_dir / "metrics.jsonl"
    return path.read_text().count('"kind":"step"') if path.exists() else 0


def read(run_dir: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run_dir / name).read_text().splitlines()]


def test_a_scripts_short_run_learns_closes_its_ledger_and_leaves_nothing_behind(
    base_model: Path, tmp_path: Path
) -> None:
    """The script is docs/client.md's example that starts a run, as it stands."""
    (script,) = [code for code in blocks(ROOT / "docs" / "client.md", "python") if "Client.start" in code]
    recipe = yaml.safe_load((ROOT / "recipes" / "cpu-demo.yaml").read_text())
    recipe["model"]["path"] = str(base_model)
    recipe["learner"]["peak_flops"] = 1e12
    recipe["eval"] = {"prompts": 64, "every_steps": 3, "small_prompts": 32, "small_n": 2}
    recipe["network"] = {"coordinator_port": 0}
    recipe["telemetry"] = {"traces": "file"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    run_dir, environ = tmp_path / "runs" / "sums", ENVIRON | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=300, check=False)
    log = run_dir / "logs" / "launcher.log"
    assert done.returncode == 0, done.stderr + (log.read_text() if log.exists() else "")
    assert "finished" in log.read_text()
    assert done.stdout.count("avg@8") == 2, "before and after"
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["steps"] == 6
    assert summary["versions"] == 6
    assert summary["exact_dapo"] is True
    assert summary["accuracy"]["before"]["n"] == 8
    assert summary["accuracy"]["after"]["avg"] > summary["accuracy"]["before"]["avg"] + 0.05
    groups = summary["groups"]
    assert groups["closed"] is True
    assert groups["trained"] == 6 * GROUPS
    assert groups["queued"] == groups["assigned"] == groups["in_flight"] == groups["pending"] == 0
    assert summary["staleness"]["max"] <= 1
    assert 0 < summary["tokens"]["trained"] < summary["tokens"]["generated"]
    assert sum(summary["tokens"].values()) == 2 * summary["tokens"]["generated"], "the sum of all its terms"

    steps = [line for line in read(run_dir, "metrics.jsonl") if line["kind"] == "step"]
    assert [line["step"] for line in steps] == list(range(6))
    assert steps[0]["mismatch/abs_diff_max"] < 1e-3, "version 0 on both sides: kernels alone"
    assert all(line["staleness/age_max_steps"] <= 1 for line in steps)
    assert all(0 < line["learner/mfu"] < 1 and line["learner/peak_memory_bytes"] > 100e6 for line in steps)
    seen = [line["rollout/kv_use"] for line in steps if "rollout/kv_use" in line]  # a short step may see no heartbeat
    assert 0 < max(seen) <= 1
    evaluated = [line["version"] for line in read(run_dir, "metrics.jsonl") if line["kind"] == "eval"]
    assert (evaluated[0], evaluated[-1]) == (0, 6)

    rows = pq.read_table(run_dir / "ledger").to_pylist()
    assert len({row["group_id"] for row in rows}) == len(rows) == groups["admitted"]
    assert sum(row["term"] == "trained" for row in rows) == groups["trained"]

    tokenizer = AutoTokenizer.from_pretrained(run_dir / "model")
    model = AutoModelForCausalLM.from_pretrained(run_dir / "model")
    prompt = tokenizer("2+3=", return_tensors="pt")
    text = tokenizer.decode(model.generate(**prompt, max_new_tokens=40, do_sample=False)[0])
    assert "#" in text
    a_trained_group_is_one_trace_over_four_processes(run_dir, rows)
    every_evaluation_is_one_trace_over_three_processes(run_dir, evaluated)
    for name in ("config.yaml", "report.html", "curves.png", "samples.jsonl", "logs/coordinator.log"):
        assert (run_dir / name).stat().st_size > 0
    assert problems(run_dir) == []
    assert left_behind(run_dir) == []


def a_trained_group_is_one_trace_over_four_processes(run_dir: Path, rows: list[dict]) -> None:
    spans = spans_of(*(run_dir / "traces").glob("*.jsonl"))
    assert len({(span.trace_id, span.span_id) for span in spans}) == len(spans)
    for row in (row for row in rows if row["term"] == "trained"):
        found = [span for span in spans if span.trace_id == row["trace_id"]]
        services = {span.resource["service.name"]: span.resource["rl.run.id"] for span in found}
        assert set(services) == {f"sluice-{name}" for name in ("coordinator", "rollout", "reward", "learner")}
        assert len(set(services.values())) == 1
        known = {span.span_id for span in found}
        assert [span.name for span in found if span.parent_id not in known] == ["sluice.group"]
        (root,) = (span for span in found if not span.parent_id)
        (link,) = root.links
        (step,) = (span for span in spans if span.span_id == link["spanId"])
        assert (step.name, step.attributes["sluice.step"]) == ("rl.loop", row["step"])


def every_evaluation_is_one_trace_over_three_processes(run_dir: Path, versions: list[int]) -> None:
    spans = spans_of(*(run_dir / "traces").glob("*.jsonl"))
    roots = [span for span in spans if span.name == "sluice.evaluation"]
    assert [root.attributes["sluice.policy.version"] for root in roots] == versions
    for root in roots:
        found = [span for span in spans if span.trace_id == root.trace_id]
        drawings = {span.span_id for span in found if span.parent_id == root.span_id}
        assert len(drawings) >= root.attributes["sluice.evaluation.prompts"]
        calls = [span for span in found if span.parent_id in drawings]
        assert 1 + len(drawings) + len(calls) == len(found)
        assert {span.resource["service.name"] for span in calls} == {"sluice-rollout", "sluice-reward"}


@pytest.mark.chaos
def test_services_that_are_killed_are_started_again_and_no_group_is_lost(start_run) -> None:
    run = start_run("run.total_steps=10", *TINY)
    until(run, lambda: steps_trained(run) >= 2)
    for words in (["services.rollout"], ["services.reward"]):
        os.kill(run.pids("-m", *words)[0], signal.SIGKILL)
    until(run, lambda: steps_trained(run) >= 4)
    os.kill(run.pids("-m", "services.coordinator")[0], signal.SIGKILL)
    until(run, lambda: steps_trained(run) >= 6)
    os.kill(run.pids("-m", "services.learner", "-u")[0], signal.SIGKILL)
    assert run.wait(timeout_s=300) == 0, run.output()
    summary = json.loads((run.run_dir / "summary.json").read_text())
    assert summary["groups"]["closed"] is True
    assert summary["groups"]["trained"] == 10 * GROUPS
    steps = [line["step"] for line in read(run.run_dir, "metrics.jsonl") if line["kind"] == "step"]
    assert steps == sorted(steps), "a step that is trained again is not reported again"
    rows = pq.read_table(run.run_dir / "ledger").to_pylist()
    trained = [row["group_id"] for row in rows if row["term"] == "trained"]
    assert len(set(trained)) == len(trained) == 10 * GROUPS
    assert problems(run.run_dir) == []
    assert run.left_behind() == []
    replay = [sys.executable, "-m", "sluice.cli.main", "replay", str(run.run_dir), "--step", "9"]
    replayed = subprocess.run(replay, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert replayed.stdout.splitlines()[-1] == "same"


@pytest.mark.long
def test_control_c_stops_the_run_in_order_and_leaves_nothing_behind(start_run) -> None:
    run = start_run("run.total_steps=1000", *TINY)
    until(run, lambda: steps_trained(run) >= 1)
    run.process.send_signal(signal.SIGINT)
    assert run.wait(timeout_s=90) == 130, run.output()
    assert run.left_behind() == []
