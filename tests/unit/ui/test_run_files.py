"""A run directory that grows while it is looked at, and folders that are none."""

import json
import math
import os
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from sluice.client import Event
from sluice.errors import NotFound, SluiceError, Unavailable
from sluice.rpc.credentials import NO_CREDENTIALS
from sluice.ui.charts import MOST_POINTS, Look, Series, accuracy_options, panel_options, smoothed
from sluice.ui.figures import overview_figures
from sluice.ui.files import RunFiles, check_run_dir
from sluice.ui.live import Live
from sluice.ui.page import _standing
from sluice.ui.panels import PANELS
from sluice.ui.runs import MOST_RUNS, open_runs
from sluice.ui.settings import settings
from sluice.v1 import common_pb2 as common
from sluice.v1 import coordinator_pb2 as pb
from tests.unit.report.ledger_cases import write_run


def step(number: int, **values: float) -> str:
    return (
        json.dumps({"kind": "step", "step": number, "time_s": 100.0 + number, "reward/trained_mean": 0.5, **values})
        + "\n"
    )


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("ui"))


def test_lines_that_come_are_read_once_and_a_thinned_file_is_read_anew(tmp_path: Path) -> None:
    files, path = RunFiles(tmp_path), tmp_path / "metrics.jsonl"
    assert files.metrics().steps == ()
    path.write_text(step(0) + step(1)[:20])
    assert [row["step"] for row in files.metrics().steps] == [0]
    with path.open("a") as file:
        file.write(step(1)[20:] + "torn {\n" + step(2))
    metrics = files.metrics()
    assert ([row["step"] for row in metrics.steps], metrics.torn_lines) == ([0, 1, 2], 1)
    path.write_text(step(1) + step(3))
    assert [row["step"] for row in files.metrics().steps] == [1, 3]


def test_a_thinned_file_that_has_grown_again_is_read_anew_and_one_that_is_gone_stays_known(tmp_path: Path) -> None:
    files, path = RunFiles(tmp_path), tmp_path / "metrics.jsonl"
    long = {"x" * 200: 1.0}
    path.write_text(step(0, **long) + step(1) + step(2))
    assert len(files.metrics().steps) == 3
    other = tmp_path / "thinned"
    other.write_text(step(0, **long) + "".join(step(number) for number in (2, 3, 4, 5)))
    other.replace(path)
    assert [row["step"] for row in files.metrics().steps] == [0, 2, 3, 4, 5]
    path.unlink()
    assert len(files.metrics().steps) == 5


def test_a_damaged_file_of_metrics_leaves_the_frame_of_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "step"}\n')
    (run,) = open_runs([tmp_path], coordinator="", credentials=None)
    assert _standing(run) == ("files only", 0, 0)
    with pytest.raises(NotFound, match="the file is none of Sluice's"):
        run.metrics()


def test_a_run_that_was_stopped_has_not_trained_all_its_steps(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "metrics.jsonl").write_text(step(0) + step(1))
    (folder / "summary.json").write_text("{}")
    (run,) = open_runs([folder], coordinator="", credentials=None)
    assert run.config().run.total_steps > 2
    assert _standing(run) == ("ended", 2, run.config().run.total_steps)


def test_a_run_on_another_machine_has_the_evaluations_that_its_coordinator_tells() -> None:
    (run,) = open_runs([], coordinator="127.0.0.1:9", credentials=None)
    assert run.live is not None
    v0, v8 = (common.PolicyVersion(lineage="a", number=number) for number in (0, 8))
    interval = pb.Interval(low=0.7, high=0.8)
    told = [
        pb.Evaluation(version=v0, avg_at_n=0.25, greedy=math.nan, n=8, prompts=64),
        pb.Evaluation(version=v8, avg_at_n=0.75, greedy=1.0, maj_at_n=0.9, avg_interval=interval),
        pb.Evaluation(version=v8, avg_at_n=0.5, set="hard"),
    ]
    run.live._take(pb.GetStatusResponse(step=8, evaluations=told))
    metrics = run.metrics()
    assert [row["eval/avg_at_n"] for row in metrics.evaluations] == [0.25, 0.75]
    assert (metrics.evaluations[0]["n"], metrics.evaluations[1]["eval/maj_at_n"]) == (8, 0.9)
    assert "eval/maj_at_n" not in metrics.evaluations[0]
    assert [row["version"] for row in metrics.sets["hard"]] == [8]
    average, greedy, *_ = overview_figures(run)
    assert (average.value, average.note, greedy.value) == ("25.0 → 75.0", "95 %: 70.0 to 80.0", "100.0")


def test_a_run_that_was_started_again_is_live_and_credentials_that_were_named_must_be_good(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    (folder / "summary.json").write_text("{}")
    (folder / "coordinator-address").write_text("127.0.0.1:9")

    def is_live(credentials: str | None = None) -> bool:
        (run,) = open_runs([folder], coordinator="", credentials=credentials)
        return run.live is not None

    assert not is_live()
    os.utime(folder / "summary.json", (1_700_000_000, 1_700_000_000))
    assert is_live()
    with pytest.raises(SluiceError, match="absent"):
        is_live(str(tmp_path / "absent"))


async def test_events_stay_while_the_coordinator_is_away_and_a_run_that_starts_again_is_followed(
    tmp_path: Path,
) -> None:
    class Coordinator:
        events: Sequence[Event] = ()

        async def watch(self, *, process: str) -> AsyncIterator[Event]:
            if not self.events:
                raise Unavailable("nobody there")
            for one in self.events:
                yield one

    def event(number: int) -> Event:
        return Event(sequence=number, process="p", time_s=0.0, kind="warning", message="", labels={})

    place, coordinator = tmp_path / "address", Coordinator()
    live = Live("127.0.0.1:9", credentials=NO_CREDENTIALS, where=place.read_text)
    for events, known in (((event(1), event(2)), 2), ((), 2), ((event(3),), 1)):
        coordinator.events = events
        await live._follow_once(coordinator)  # type: ignore[arg-type]
        assert len(live.events) == known
    assert live._now_at() == "127.0.0.1:9"  # the folder is gone
    place.write_text("127.0.0.1:10")
    assert live._now_at() == "127.0.0.1:10"


def test_a_run_that_is_rolled_back_shows_what_survives(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(step(number) for number in range(4)))
    files = RunFiles(tmp_path)
    assert len(files.metrics().steps) == 4
    with path.open("a") as file:
        file.write(json.dumps({"kind": "rollback", "to": 2, "lineage": "b"}) + "\n")
    assert len(files.metrics().steps) == 2


def test_a_folder_that_is_no_run_is_refused_with_the_run_below_it(tmp_path: Path, run_dir: Path) -> None:
    check_run_dir(run_dir)
    with pytest.raises(NotFound, match="no such run directory"):
        check_run_dir(tmp_path / "absent")
    with pytest.raises(NotFound, match=r"has none of config\.yaml"):
        check_run_dir(tmp_path)
    with pytest.raises(NotFound, match=re.escape(f"did you mean {run_dir}")):
        check_run_dir(run_dir.parent)
    with pytest.raises(NotFound, match=f"at most {MOST_RUNS}"):
        open_runs([run_dir] * 13, coordinator="", credentials=None)


def test_runs_of_one_name_are_told_apart_and_one_run_may_have_a_coordinator_beside(
    tmp_path: Path, run_dir: Path
) -> None:
    other = write_run(tmp_path / "other")
    runs = open_runs([run_dir, other], coordinator="", credentials=None)
    assert [run.name for run in runs] == [f"{run_dir.parent.name}/run", "other/run"]
    twins = [write_run(tmp_path / one / "same") for one in ("a", "b")]
    runs = open_runs([*twins, twins[0], run_dir], coordinator="", credentials=None)
    assert [run.name for run in runs] == ["a/same/run", "b/same/run", f"{run_dir.parent.name}/run"]
    with pytest.raises(NotFound, match="is none of those shown here"):
        runs.named("third")
    (alone,) = open_runs([run_dir], coordinator="127.0.0.1:9", credentials=None)
    assert alone.live is not None
    assert alone.files is not None


def test_charts_have_the_runs_points_and_no_more_than_a_browser_draws_well(tmp_path: Path) -> None:
    count = 5 * MOST_POINTS
    values = {"sampling/acceptance": 0.25, "staleness/age_max_steps": 1.0, "mismatch/k3_age0_nats": 1e-4}
    evaluation = {
        "kind": "eval",
        "version": 5,
        "eval/avg_at_n": 0.5,
        "eval/avg_at_n_low": 0.4,
        "eval/avg_at_n_high": 0.6,
    }
    lines = [step(number, **values) for number in range(count)]
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + json.dumps(evaluation) + "\n")
    series = [Series(run="one", metrics=RunFiles(tmp_path).metrics(), bound=2)]
    drawn = {panel.key: panel_options(panel, series, Look(smoothing=0)) for panel in PANELS}
    kept = next(one for one in drawn["sampling"]["series"] if one["name"] == "kept")["data"]
    assert (len(kept), kept[0], kept[-1]) == (MOST_POINTS, [1, 25], [count, 25])
    assert drawn["mismatch"]["yAxis"]["type"] == "log"
    assert drawn["age"]["series"][-1]["markLine"]["data"][0]["yAxis"] == 2
    assert drawn["mfu"]["graphic"][0]["style"]["text"] == "not measured in this run yet"
    accuracy, low, band = accuracy_options(series, Look())["series"]
    assert (accuracy["data"], low["data"], band["data"]) == ([[5, 50]], [[5, 40]], [[5, 20]])
    two = panel_options(PANELS[0], [*series, Series(run="two", metrics=series[0].metrics)], Look(smoothing=0))
    assert [one["name"] for one in two["series"]] == ["one: after the filter", "two: after the filter"]
    assert two["series"][0]["itemStyle"] != two["series"][1]["itemStyle"]
    json.dumps(drawn, allow_nan=False)


def test_a_smoothed_line_begins_at_its_first_value_and_keeps_a_constant() -> None:
    assert smoothed(np.full(5, 3.0), 0.9).tolist() == pytest.approx([3.0] * 5)
    assert smoothed(np.array([0.0, 1.0, 1.0]), 0.5).tolist() == pytest.approx([0.0, 2 / 3, 6 / 7])


def test_the_same_figures_stand_in_the_same_places_for_a_run_with_and_without_steps(
    run_dir: Path, tmp_path: Path
) -> None:
    (without,) = open_runs([run_dir], coordinator="", credentials=None)
    (unknown,) = open_runs([], coordinator="127.0.0.1:9", credentials=None)
    assert isinstance(unknown.live, Live)
    assert unknown.live._credentials is NO_CREDENTIALS
    labels = [one.label for one in overview_figures(without)]
    assert [one.label for one in overview_figures(unknown)] == labels


def test_every_key_of_the_configuration_stands_beside_its_default_or_another_runs(run_dir: Path) -> None:
    config = RunFiles(run_dir).config()
    rows = {one.key: one for one in settings(config)}
    assert rows["coordinator.max_staleness"].description
    assert rows["run.name"].against == "run"
    assert {one.key for one in settings(config) if one.differs} >= {"model.path"}
    assert [one.key for one in settings(config, other=config) if one.differs] == []
    model = config.model.model_copy(update={"path": "https://me:word@host/model"})
    (path,) = (one for one in settings(config.model_copy(update={"model": model})) if one.key == "model.path")
    assert path.value == "https://[redacted]@host/model"


async def test_a_coordinator_of_another_version_is_named_where_its_configuration_would_stand() -> None:
    class Answers:
        async def config(self) -> str:
            return "run: {name: x, brand_new_key: 3}"

    (run,) = open_runs([], coordinator="127.0.0.1:9", credentials=None)
    with pytest.raises(NotFound, match="has not been told by the coordinator yet"):
        run.config()
    assert run.live is not None
    run.live.client = Answers()  # type: ignore[assignment]
    await run.ask_config()
    with pytest.raises(NotFound, match=r"(?s)brand_new_key.*another version of Sluice"):
        run.config()
