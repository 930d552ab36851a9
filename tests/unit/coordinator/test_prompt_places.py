"""How far the prompts were, for a Redis that forgot: a repair goes on from there and not from the first prompt."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from services.coordinator.groups.admitter import Admitter
from services.coordinator.storage.prompt_places import KEPT_PLACES, PLACES_FILE, note_place, place_before
from services.coordinator.storage.run_files import RunFiles
from tests.unit.coordinator.fakes import FakePrompts, Stage, make_config


def test_the_newest_place_that_is_early_enough_is_found_and_the_file_stays_small(tmp_path: Path) -> None:
    assert place_before(tmp_path, 10) is None
    for number in range(0, 1_000, 10):
        note_place(tmp_path, admissions=number, cursor=f"{number}:1")
        note_place(tmp_path, admissions=number, cursor=f"{number}:1")
    assert place_before(tmp_path, 988) == (980, "980:1")
    assert place_before(tmp_path, 1_000) == (990, "990:1")
    assert place_before(tmp_path, 1_000 - 10 * KEPT_PLACES) == (360, "360:1")
    assert place_before(tmp_path, 100) is None
    assert (tmp_path / PLACES_FILE).stat().st_size < 64 * KEPT_PLACES


@pytest.mark.parametrize("text", ["", "{", "[1]", '[["a", 1]]', "null"])
def test_a_damaged_file_is_no_place_and_is_written_anew(tmp_path: Path, text: str) -> None:
    (tmp_path / PLACES_FILE).write_text(text)
    assert place_before(tmp_path, 10) is None
    note_place(tmp_path, admissions=4, cursor="4:0")
    assert place_before(tmp_path, 10) == (4, "4:0")


def test_a_place_that_cannot_be_noted_does_not_fail_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / PLACES_FILE).mkdir()
    note_place(tmp_path, admissions=4, cursor="4:0")
    assert place_before(tmp_path, 10) is None


class CountedPrompts(FakePrompts):
    """Counts what is drawn."""

    drawn = 0

    def next(self, cursor: str):  # type: ignore[no-untyped-def]
        self.drawn += 1
        return super().next(cursor)


@pytest.mark.parametrize(("noted", "drawn"), [(None, 1000), (990, 1000), (900, 100)])
async def test_a_repair_draws_the_prompts_behind_the_noted_place_and_admits_the_same_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: int | None, drawn: int
) -> None:
    stage, prompts, meta = Stage(config=make_config()), CountedPrompts(), dict[str, str]()

    async def set_meta(values: Mapping[str, str]) -> None:
        meta.update(values)

    monkeypatch.setattr(stage.store, "set_meta", set_meta, raising=False)
    records = stage.records(RunFiles(tmp_path))
    admitter = Admitter(stage.run, records, prompts=prompts, cursor="", admissions=0)
    if noted is not None:
        note_place(tmp_path, admissions=noted, cursor=str(noted))
    again = await admitter.catch_up(1000, known={"r-0000998"}, most=20)
    expected = [number for number in range(980, 1000) if number != 998]
    assert [(group.admission, group.prompt.prompt_id) for group in again] == [(n, f"p{n}") for n in expected]
    assert (prompts.drawn, admitter.admissions, meta) == (drawn, 1000, {"cursor": "1000", "admissions": "1000"})
    await admitter.note_place()
    assert place_before(tmp_path, 1000) == (1000, "1000")
