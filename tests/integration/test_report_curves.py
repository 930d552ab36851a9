"""Marked integration for its time alone: matplotlib needs about a second a sheet."""

import json
import math

import numpy as np
import pytest

from sluice.report.curves import curves, draw_curves
from sluice.report.metrics import RunMetrics

pytestmark = pytest.mark.integration

TITLES = [
    "Held-out accuracy",
    "Reward",
    "Dynamic sampling",
    "Entropy",
    "Response length",
    "Clipped tokens",
    "Mismatch, KL(rollout ‖ learner)",
    "Age of the oldest token",
    "Throughput",
]


def some_metrics():
    steps = tuple(
        {
            "step": float(k),
            "loss/entropy_nats": 1.0 if k == 5 else 0.0,
            "mismatch/k3_nats": 0.0 if k == 0 else 1e-4,
            "staleness/age_max_steps": 1.0,
            "reward/generated_mean": math.nan if k == 3 else 0.5,
        }
        for k in range(40)
    )
    evaluations = tuple({"version": v, "eval/avg_at_n": a, "eval/greedy": 0.9} for v, a in ((0.0, 0.2), (40.0, 0.8)))
    return RunMetrics(steps=steps, evaluations=evaluations, torn_lines=0)


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def test_every_panel_has_a_title_and_a_unit():
    figure = curves(some_metrics(), title="run", max_staleness=2)
    assert list(panels(figure)) == TITLES
    assert all(axes.get_ylabel() for axes in figure.axes)
    assert [axes.get_xlabel() for axes in figure.axes[-3:]] == ["steps trained"] * 3


def test_figures_of_the_devices_have_a_row_of_their_own_where_a_run_has_them():
    steps = tuple({"step": float(k), "learner/peak_memory_bytes": 2e9, "rollout/kv_use": 0.5} for k in range(3))
    figure = curves(RunMetrics(steps=steps, evaluations=(), torn_lines=0), title="run", max_staleness=None)
    assert list(panels(figure)) == [*TITLES, "Use of the devices", "Memory of a learner's rank", "Preemptions"]
    np.testing.assert_array_equal(panels(figure)["Use of the devices"].lines[0].get_ydata(), 0.5)


def test_steps_stand_where_they_end_and_evaluations_at_their_version():
    sheet = panels(curves(some_metrics(), title="run", max_staleness=2))
    np.testing.assert_array_equal(sheet["Entropy"].lines[0].get_xdata(), np.arange(1, 41))
    np.testing.assert_array_equal(sheet["Held-out accuracy"].lines[0].get_xdata(), [0, 40])


def test_the_thick_line_is_a_centred_mean_that_keeps_the_total():
    raw, smooth = panels(curves(some_metrics(), title="run", max_staleness=2))["Entropy"].lines
    assert raw.get_ydata()[5] == 1.0
    np.testing.assert_allclose(smooth.get_ydata()[4:7], 1 / 3)
    assert np.sum(smooth.get_ydata()) == pytest.approx(1.0)


def test_absent_values_and_zeros_on_a_logarithmic_axis_are_left_out():
    sheet = panels(curves(some_metrics(), title="run", max_staleness=2))
    assert len(sheet["Reward"].lines[0].get_xdata()) == 39
    assert len(sheet["Mismatch, KL(rollout ‖ learner)"].lines[0].get_xdata()) == 39


def test_the_before_lines_and_the_age_bound_are_drawn():
    sheet = panels(curves(some_metrics(), title="run", max_staleness=2))
    labels = [line.get_label() for line in sheet["Held-out accuracy"].lines]
    assert "avg@n before: 20%" in labels
    assert "greedy before: 90%" in labels
    assert sheet["Age of the oldest token"].lines[-1].get_label() == "bound: 2"


def test_the_headline_carries_the_change():
    figure = curves(some_metrics(), title="demo", max_staleness=None)
    assert figure.get_suptitle() == "demo   avg@n 20% → 80%   greedy 90% → 90%"


def test_a_run_that_ended_before_its_first_step_gets_a_picture_too(tmp_path):
    path = draw_curves(tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [child.name for child in tmp_path.iterdir()] == ["curves.png"]


def test_the_bound_comes_from_the_resolved_configuration(tmp_path):
    (tmp_path / "config.yaml").write_text("coordinator:\n  max_staleness: 3\n")
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"kind": "step", "step": 0, "staleness/age_max_steps": 3}))
    assert draw_curves(tmp_path).stat().st_size > 10_000
