"""A file of lines that outgrows its size: what is new stays, what is old gets sparse, and readers notice nothing."""

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.coordinator.storage.run_files import RunFiles
from sluice.report.metrics import read_metrics
from sluice.report.samples import read_samples
from sluice.run_dir.json_lines import read_json_lines
from sluice.run_dir.thinning import thin

MOST_BYTES = 20_000


def step(number: int, **more: object) -> dict[str, object]:
    return {"kind": "step", "step": number, "loss/policy": 0.5, **more}


def evaluation(version: int) -> dict[str, object]:
    return {"kind": "eval", "version": version, "lineage": "a", "eval/avg_at_n": 0.5}


def write(path: Path, *lines: object) -> None:
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_new_steps_stay_whole_and_old_ones_get_sparse_while_every_evaluation_stays(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for number in range(1000):
        write(path, step(number), *([evaluation(number)] if number % 50 == 0 else []))
    size = path.stat().st_size
    assert size > MOST_BYTES
    assert thin(path, most_bytes=MOST_BYTES)
    assert path.stat().st_size <= MOST_BYTES // 2
    metrics = read_metrics(tmp_path)
    steps = [int(row["step"]) for row in metrics.steps]
    assert [row["version"] for row in metrics.evaluations] == list(range(0, 1000, 50))
    assert (steps[0], steps[-1]) == (0, 999)
    whole = max(place for place in range(len(steps)) if steps[-place - 1] == 999 - place)
    line_bytes = len(json.dumps(step(999))) + 1
    assert whole * line_bytes > MOST_BYTES // 4 - 4 * line_bytes, "the newest quarter of the size is whole"
    sparse = steps[: -whole - 1]
    apart = {after - before for before, after in itertools.pairwise(sparse)}
    assert apart in ({2}, {4}, {8}, {16}), "what is older is evenly sparse"
    assert not thin(path, most_bytes=MOST_BYTES)


async def test_a_file_stays_under_its_size_however_long_the_run(tmp_path: Path) -> None:
    files = RunFiles(tmp_path, most_bytes=MOST_BYTES)
    for number in range(1000):
        await files.append_metrics({**step(number), "time_s": 1.0, "lineage": "a"})
        sample = {"text": "x", "raw_score": 1.0, "shaped_reward": 1.0, "acc": 1.0, "finish_reason": "stop", "tokens": 1}
        await files.append_sample({"step": number, "group_id": f"g{number}", "prompt": "p", "samples": [sample]})
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert (tmp_path / name).stat().st_size <= MOST_BYTES + 200
        lines = read_json_lines(tmp_path / name)
        assert lines.torn_lines == 0
        steps = [line["step"] for line in lines.objects]
        assert steps == sorted(set(steps))
        assert (steps[0], steps[-1]) == (0, 999)
    assert read_samples(tmp_path)[0].group_id == "g0"


def test_a_rollback_still_gives_up_what_it_gave_up(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *(step(number) for number in range(100)), {"kind": "rollback", "number": 1, "to": 64, "lineage": "b"})
    write(path, *(step(number, lineage="b") for number in range(64, 400)))
    assert thin(path, most_bytes=MOST_BYTES // 2)
    steps = read_metrics(tmp_path).steps
    assert [line["kind"] for line in read_json_lines(path).objects].count("rollback") == 1
    assert [row["step"] for row in steps] == sorted(row["step"] for row in steps)
    assert steps[-1]["step"] == 399


def test_evaluations_that_alone_are_too_many_get_sparse_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *(evaluation(version) for version in range(1000)))
    assert thin(path, most_bytes=MOST_BYTES)
    assert path.stat().st_size <= MOST_BYTES // 2
    versions = [row["version"] for row in read_metrics(tmp_path).evaluations]
    assert (versions[0], versions[-1]) == (0, 999)


def test_a_torn_line_goes_and_a_kill_before_the_new_name_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *(step(number) for number in range(200)))
    with path.open("a") as file:
        file.write('{"kind": "step", "st\n')
    write(path, *(step(number) for number in range(200, 500)))
    before = path.read_bytes()
    monkeypatch.setattr("sluice.run_dir.durable.os.replace", _full)
    with pytest.raises(OSError, match="full"):
        thin(path, most_bytes=MOST_BYTES)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["metrics.jsonl"]
    monkeypatch.undo()
    assert thin(path, most_bytes=MOST_BYTES)
    assert read_json_lines(path).torn_lines == 0


async def test_a_file_that_cannot_be_thinned_takes_lines_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunFiles(tmp_path, most_bytes=4096)
    monkeypatch.setattr("sluice.run_dir.durable.os.replace", _full)
    for number in range(200):
        await files.append_metrics({**step(number), "time_s": 1.0})
    assert len(read_json_lines(tmp_path / "metrics.jsonl").objects) == 200


def _full(*_: object) -> None:
    raise OSError("the disk is full")


@settings(deadline=None, max_examples=60)
@given(
    kinds=st.lists(st.sampled_from(["step", "eval", "rollback", "other"]), min_size=1, max_size=120),
    most_bytes=st.integers(400, 4000),
)
def test_thinning_keeps_the_order_and_the_last_line_whatever_is_in_the_file(
    kinds: list[str], most_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("thin") / "lines"
    made = {"step": step, "eval": evaluation}
    write(
        path,
        *(made.get(kind, lambda number, kind=kind: {"kind": kind, "at": number})(n) for n, kind in enumerate(kinds)),
    )
    before = read_json_lines(path).objects
    thin(path, most_bytes=most_bytes)
    after = read_json_lines(path).objects
    places = [before.index(line) for line in after]
    assert places == sorted(places)
    assert [line for line in after if "at" in line] == [line for line in before if "at" in line]
    assert after[-1] == before[-1]
