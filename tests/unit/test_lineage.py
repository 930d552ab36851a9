"""Which versions a rollback gives up, and under which lineage a learner goes on."""

import threading
from pathlib import Path

import pytest

from sluice.lineage import LineageBook, Rollback, is_given_up, is_older, lineage_from
from tests.power_failure import Disk

TO_300 = Rollback(to=300, lineage="b")
TO_350 = Rollback(to=350, lineage="d")


@pytest.mark.parametrize(
    ("lineage", "number", "given_up"),
    [
        ("a", 300, False),
        ("a", 301, True),
        ("b", 301, False),
        ("b", 350, False),
        ("b", 351, True),
        ("c", 351, True),
        ("a", 320, True),
        ("d", 351, False),
    ],
)
def test_what_older_lineages_made_behind_a_rollback_is_given_up(lineage: str, number: int, given_up: bool) -> None:
    assert is_given_up(lineage, number, [TO_300, TO_350]) is given_up
    assert not is_given_up(lineage, number, [])


def test_a_learner_goes_on_under_the_newest_lineage_there_was() -> None:
    assert lineage_from("a", []) == "a"
    assert lineage_from("a", [TO_300, TO_350]) == "d"
    assert lineage_from("e", [TO_300, TO_350]) == "e"
    assert lineage_from("z", [Rollback(to=3, lineage="aa")]) == "aa"
    assert is_older("z", "aa")
    assert not is_older("b", "b")


def test_a_name_that_was_minted_outlives_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, tmp_path)
    book = LineageBook(tmp_path / "lineages")
    for _ in range(2):
        fresh = book.mint()
        assert disk.left()["lineages"].split()[-1] == fresh.encode()
    disk.close()


def test_names_minted_at_once_are_different(tmp_path: Path) -> None:
    minted: list[str] = []
    threads = [
        threading.Thread(target=lambda: minted.append(LineageBook(tmp_path / "lineages").mint())) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(minted) == list("bcdefghi")
