import json

import numpy as np
import pytest

from sluice.report.metrics import column, read_metrics
from sluice.report.samples import read_samples
from sluice.run_dir.json_lines import read_json_lines


def write(path, *lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), encoding="utf-8")


def test_a_torn_last_line_is_counted_and_the_rest_is_read(tmp_path):
    write(tmp_path / "metrics.jsonl", {"kind": "step", "step": 0, "loss/policy": 0.5}, '{"kind": "step", "st')
    metrics = read_metrics(tmp_path)
    assert [row["step"] for row in metrics.steps] == [0]
    assert metrics.torn_lines == 1


def test_a_line_torn_by_a_writer_that_came_back_costs_only_itself(tmp_path):
    write(tmp_path / "a.jsonl", {"x": 1}, '{"x": {"x": 2}', {"x": 3})
    lines = read_json_lines(tmp_path / "a.jsonl")
    assert [value["x"] for value in lines.objects] == [1, 3]
    assert lines.torn_lines == 1


def test_a_character_cut_in_two_counts_as_a_torn_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"x": 1}\n{"x": "\xe2\x86')
    assert read_json_lines(tmp_path / "a.jsonl").torn_lines == 1


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    text = "a\u2028b\u0085c"
    (tmp_path / "a.jsonl").write_text(json.dumps({"x": text}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_json_lines(tmp_path / "a.jsonl").objects == ({"x": text},)


def test_json_that_is_not_an_object_is_refused_with_its_place(tmp_path):
    write(tmp_path / "a.jsonl", {"x": 1}, "[1, 2]")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: must be a JSON object, got list"):
        read_json_lines(tmp_path / "a.jsonl")


def test_a_run_without_files_reads_as_empty(tmp_path):
    metrics = read_metrics(tmp_path)
    assert (metrics.steps, metrics.evaluations, metrics.torn_lines) == ((), (), 0)
    assert read_samples(tmp_path) == ()


def test_a_step_trained_again_after_a_restore_replaces_its_first_line(tmp_path):
    rows = [{"kind": "step", "step": step, "loss/policy": value} for step, value in ((0, 1.0), (1, 2.0), (0, 3.0))]
    write(tmp_path / "metrics.jsonl", *rows)
    assert column(read_metrics(tmp_path).steps, "loss/policy").tolist() == [3.0, 2.0]


def test_what_was_rolled_back_is_not_shown_and_what_came_after_is(tmp_path):
    step = {"kind": "step", "loss/policy": 1.0}
    write(
        tmp_path / "metrics.jsonl",
        *({**step, "step": number} for number in range(4)),
        {"kind": "eval", "version": 2, "lineage": "a"},
        {"kind": "eval", "version": 4, "lineage": "a"},
        {"kind": "rollback", "number": 1, "to": 2, "lineage": "b"},
        {"kind": "eval", "version": 3, "lineage": "a"},
        {**step, "step": 2, "loss/policy": 2.0},
        {"kind": "eval", "version": 3, "lineage": "b", "eval/greedy": 0.5},
    )
    metrics = read_metrics(tmp_path)
    assert [(row["step"], row["loss/policy"]) for row in metrics.steps] == [(0, 1.0), (1, 1.0), (2, 2.0)]
    assert [(row["version"], row.get("eval/greedy")) for row in metrics.evaluations] == [(2, None), (3, 0.5)]


def test_steps_and_evaluations_are_told_apart_and_other_kinds_left_alone(tmp_path):
    write(
        tmp_path / "metrics.jsonl",
        {"kind": "eval", "version": 0, "eval/greedy": 0.7},
        {"kind": "later_addition", "x": 1},
        {"kind": "step", "step": 0, "time_s": 1.5, "note": "text is no metric"},
    )
    metrics = read_metrics(tmp_path)
    assert metrics.evaluations == ({"version": 0.0, "eval/greedy": 0.7},)
    assert metrics.steps == ({"step": 0.0, "time_s": 1.5},)


def test_a_metric_that_is_absent_or_not_a_number_is_nan_in_its_column(tmp_path):
    write(tmp_path / "metrics.jsonl", '{"kind":"step","step":0,"a":NaN}', '{"kind":"step","step":1,"a":2}', "{}")
    values = column(read_metrics(tmp_path).steps, "a")
    np.testing.assert_array_equal(values, [np.nan, 2.0])
    assert np.isnan(column(read_metrics(tmp_path).steps, "b")).all()


def test_a_step_without_its_number_is_refused(tmp_path):
    write(tmp_path / "metrics.jsonl", {"kind": "step", "loss/policy": 1.0})
    with pytest.raises(ValueError, match="must have a number 'step', got None"):
        read_metrics(tmp_path)
