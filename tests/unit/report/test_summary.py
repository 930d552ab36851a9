import io
import json
import math

import pytest
from rich.console import Console

from sluice.launch.view import evaluation_line
from sluice.report.summary import build_summary, print_summary, write_summary
from sluice.v1 import common_pb2
from sluice.v1 import coordinator_pb2 as pb


def finished_run(**changes):
    status = pb.GetStatusResponse(
        state=pb.RUN_STATE_FINISHED,
        step=100,
        total_steps=100,
        train_wall_s=71.5,
        version=common_pb2.PolicyVersion(lineage="a", number=100),
        ledger=pb.Ledger(
            admitted=5003,
            trained=3200,
            filtered_all_right=1400,
            filtered_all_wrong=390,
            abandoned=10,
            failed={"score_timeout": 3},
            closed=True,
            generated_tokens=1_102_000,
            trained_tokens=703_000,
            tokens={"trained": 703_000, "filtered_all_right": 390_000, "failed:score_timeout": 8_000, "lost": 1_000},
        ),
        evaluations=[
            pb.Evaluation(avg_at_n=0.2, greedy=0.72, n=8),
            pb.Evaluation(avg_at_n=0.5, greedy=0.8, n=4),
            pb.Evaluation(avg_at_n=0.85, greedy=0.97, n=8),
        ],
    )
    status.MergeFrom(pb.GetStatusResponse(**changes))
    return status


def nothing_but(**figures):
    keys = ("greedy", "avg", "n", "avg_interval", "pass", "pass_interval", "maj", "maj_interval", "tool_use")
    return dict.fromkeys(keys) | figures


def write_ages(run_dir):
    rows = [
        {"kind": "step", "step": k, "staleness/age_mean_steps": mean, "staleness/age_max_steps": largest}
        for k, (mean, largest) in enumerate([(0.0, 0), (0.5, 1), (1.0, 1)])
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def summarise(run_dir, status=None, departures=()):
    return build_summary(status=status or finished_run(), run_dir=run_dir, wall_s=95.25, departures=departures)


def test_the_summary_has_exactly_the_keys_of_the_contract(tmp_path):
    write_ages(tmp_path)
    assert summarise(tmp_path) == {
        "steps": 100,
        "wall_s": 95.25,
        "train_wall_s": 71.5,
        "accuracy": {
            "set": "",
            "before": nothing_but(greedy=0.72, avg=0.2, n=8, **{"pass": 0.0}),
            "after": nothing_but(greedy=0.97, avg=0.85, n=8, **{"pass": 0.0}),
            "sets": {},
        },
        "tokens": {
            "generated": 1_102_000,
            "trained": 703_000,
            "filtered_all_right": 390_000,
            "failed:score_timeout": 8_000,
            "lost": 1_000,
        },
        "groups": {
            "admitted": 5003,
            "trained": 3200,
            "assigned": 0,
            "queued": 0,
            "scored": 0,
            "in_flight": 0,
            "pending": 0,
            "filtered_all_right": 1400,
            "filtered_all_wrong": 390,
            "filtered_other": 0,
            "stale": 0,
            "surplus": 0,
            "rollback": 0,
            "failed": {"score_timeout": 3},
            "abandoned": 10,
            "closed": True,
        },
        "staleness": {"max": 1.0, "mean": 0.5},
        "versions": 100,
        "exact_dapo": True,
        "departures": [],
    }


def test_what_does_not_exist_is_null_and_never_zero(tmp_path):
    summary = summarise(tmp_path, pb.GetStatusResponse(state=pb.RUN_STATE_FAILED))
    assert summary["accuracy"] == {"set": "", "before": nothing_but(), "after": nothing_but(), "sets": {}}
    assert summary["staleness"] == {"max": None, "mean": None}


def test_one_evaluation_is_a_before_without_an_after(tmp_path):
    status = pb.GetStatusResponse(evaluations=[pb.Evaluation(avg_at_n=0.2, greedy=math.nan, n=8)])
    accuracy = summarise(tmp_path, status)["accuracy"]
    assert accuracy["before"] == nothing_but(avg=0.2, n=8, **{"pass": 0.0})
    assert accuracy["after"]["avg"] is None


def test_named_sets_stand_apart_from_the_default_one_and_for_the_run_where_there_is_none(tmp_path):
    def own(avg, **facts):
        within = pb.Interval(low=avg - 0.1, high=avg + 0.1)
        return pb.Evaluation(set="aime_2024", avg_at_n=avg, n=32, avg_interval=within, greedy=math.nan, **facts)

    status = finished_run(evaluations=[own(0.25), own(0.5, maj_at_n=0.75)])
    accuracy = summarise(tmp_path, status)["accuracy"]
    assert accuracy["after"]["avg"] == 0.85
    after = accuracy["sets"]["aime_2024"]["after"]
    assert (after["avg"], after["avg_interval"], after["maj"], after["greedy"]) == (0.5, [0.4, 0.6], 0.75, None)
    assert "aime_2024 avg@32" in closing_table(tmp_path, status)
    assert ".25 → .50 [.40, .60]" in closing_table(tmp_path, status)
    alone = pb.GetStatusResponse(evaluations=[own(0.25), own(0.5)])
    accuracy = summarise(tmp_path, alone)["accuracy"]
    assert (accuracy["set"], accuracy["before"]["avg"]) == ("aime_2024", 0.25)


def test_the_file_holds_the_summary_and_replaces_an_older_one_whole(tmp_path):
    (tmp_path / "summary.json").write_text("older and longer" * 1000)
    summary = summarise(tmp_path)
    path = write_summary(summary, run_dir=tmp_path)
    assert json.loads(path.read_text()) == summary
    assert [child.name for child in tmp_path.iterdir()] == ["summary.json"]


def test_a_summary_that_is_not_json_leaves_the_older_one_standing(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="JSON compliant"):
        write_summary({"steps": math.nan}, run_dir=tmp_path)
    assert (tmp_path / "summary.json").read_text() == "{}"


def closing_table(run_dir, status, departures=()):
    console = Console(width=140, file=io.StringIO(), record=True)
    print_summary(console, status=status, summary=summarise(run_dir, status, departures), run_dir=run_dir)
    return console.export_text()


def test_the_closing_table_says_what_came_of_the_run(tmp_path):
    write_ages(tmp_path)
    text = closing_table(tmp_path, finished_run())
    for part in (
        "finished",
        "held-out avg@8",
        ".20 → .85",
        ".72 → .97",
        "100 in 1:12 (1:35 with start and evaluation)",
        "1.1M generated, 703k trained, 390k without signal, 1.0k lost, 8.0k of others",
        "0.5 mean, 1 max",
        "exact DAPO",
        "5003 admitted, 3200 trained, 1790 without signal, 3 failed, 10 abandoned; ledger closed",
        "metrics.jsonl",
        tmp_path.name,
    ):
        assert part in text, part


def test_the_use_of_tools_has_a_line_where_tools_were_used(tmp_path):
    status = finished_run()
    assert "tool use" not in closing_table(tmp_path, status)
    for evaluation, share in zip(status.evaluations, (0.0, 0.5, 0.95), strict=True):
        evaluation.tool_use = share
    assert "held-out tool use  .00 → .95" in closing_table(tmp_path, status)
    assert evaluation_line(status.evaluations[-1]).endswith("greedy .97  tool use .95  0 prompts in 0:00")
    for evaluation in status.evaluations:
        evaluation.tool_use = 0.0
    assert "tool use" not in closing_table(tmp_path, status)


def test_a_run_that_is_not_exact_dapo_says_by_which_settings(tmp_path):
    departures = ["algorithm.loss_mode: gspo", "algorithm.filter_groups.enable: false"]
    assert summarise(tmp_path, departures=departures)["exact_dapo"] is False
    assert f"not exact DAPO: {', '.join(departures)}" in closing_table(tmp_path, finished_run(), departures)


def test_an_open_ledger_and_a_failure_are_not_hidden(tmp_path):
    status = finished_run(reason="learner: died 4 times")
    status.state, status.ledger.closed = pb.RUN_STATE_FAILED, False
    text = closing_table(tmp_path, status)
    assert "failed: learner: died 4 times" in text
    assert "LEDGER NOT CLOSED" in text
