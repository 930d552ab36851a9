"""Marked integration for its time alone: matplotlib needs about a second a sheet."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from sluice.cli.main import main
from sluice.config.load import dump_config, load_config
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


HOSTILE = (
    "</pre><script>fetch('//evil')</script><img src=//evil onerror=alert(1)> {{ 7*7 }} "
    "\u202eright to left\u0007 \x1b[2J \ud800"
)


class Page(HTMLParser):
    """What a browser would do with a page: the elements that it would make, what it would fetch, what it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.asked: list[str] = []
        self.handlers: list[str] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.asked += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_report_is_one_page_that_asks_nobody_and_shows_hostile_text_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "a run<b>"
    run_dir.mkdir()
    needed = ["model.path=m", "data.train_files=[mixadd3:train]", "learner.lr=3e-4", "algorithm.loss_mode=gspo"]
    (run_dir / "config.yaml").write_text(dump_config(load_config(None, overrides=needed)))
    lines = [{"kind": "step", "step": k, "loss/entropy_nats": 0.5, "time_s": 1.0} for k in range(3)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sample = {"text": HOSTILE, "raw_score": 1.0, "shaped_reward": 0.5, "acc": 1.0, "finish_reason": "stop", "tokens": 9}
    huge = sample | {"text": "x" * 1_000_000}
    group = {"group_id": "g0", "step": 0, "prompt": HOSTILE, "samples": [sample] * 9 + [huge]}
    (run_dir / "samples.jsonl").write_text((json.dumps(group) + "\n") * 30)
    assert main(["report", str(run_dir)]) == 0
    assert capsys.readouterr().out.strip() == str(run_dir / "report.html")
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert len(text) < 2_000_000
    page = Page(text)
    assert not page.elements & {"script", "img", "link", "iframe", "object", "b", "base", "form"}
    assert (page.handlers, [one for one in page.asked if not one.startswith("#")]) == ([], [])
    assert "url(http" not in text
    assert "default-src 'none'" in text
    shown = "".join(page.words)
    assert "<script>fetch('//evil')</script>" in shown
    assert "{{ 7*7 }}" in shown
    assert "\u27e8U+202E\u27e9right to left\u2407 \u241b[2J" in shown
    assert not any(character in text for character in "\u202e\x07\x1b")
    assert "12 of the 30 groups" in shown
    assert shown.count("and 2 more") == 12
    assert "Not exact DAPO: algorithm.loss_mode: gspo" in shown
    assert "Held-out accuracy" in shown, "the curves are part of the page"
    changed = shown[shown.index("keys are not at their defaults") : shown.index("keys at their defaults")]
    assert "learner.lr" in changed
    assert "run.seed" not in changed
    assert "run.seed" in shown


def test_a_report_of_no_run_and_of_a_damaged_one_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path} must be a run directory, which has a config.yaml" in line
    needed = ["model.path=m", "data.train_files=[mixadd3:train]"]
    (tmp_path / "config.yaml").write_text(dump_config(load_config(None, overrides=needed)))
    (tmp_path / "samples.jsonl").write_text('{"step": 1}\n')
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "r.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not as Sluice wrote it" in line
    (tmp_path / "samples.jsonl").unlink()
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "none" / "r.html")]) == 2
    assert "cannot write" in capsys.readouterr().err
    assert sorted(child.name for child in tmp_path.iterdir()) == ["config.yaml"]
