"""A group's life on the page: a stretch for each thing that it waited for or that was done with it."""

from typing import Any

from sluice.ui.views.group import stretches


def row(**values: Any) -> dict[str, Any]:
    attempt = {"number": 1, "rollout": "rollout-0", "version": 3, "asked": 8, "samples": 8, "tokens": 90, "fault": ""}
    times = {"started_s": 101.0, "ended_s": 104.0}
    return {"admitted_s": 100.0, "ended_s": 120.0, "attempts": [attempt | times], **values}


def lengths(row: dict[str, Any]) -> list[tuple[str, float]]:
    return [(one.name, one.end_s - one.begin_s) for one in stretches(row)]


def test_a_trained_group_waits_is_generated_graded_queued_and_trained() -> None:
    assert lengths(row(grading_s=104.5, graded_s=105.0, queued_s=105.0, assigned_s=112.0)) == [
        ("waits to start", 1.0),
        ("rollout-0 · v3", 3.0),
        ("graded", 0.5),
        ("in the queue", 7.0),
        ("in its batch", 8.0),
    ]


def test_a_group_that_was_dropped_ends_with_its_grades_and_one_that_was_never_assigned_in_the_queue() -> None:
    assert [name for name, _ in lengths(row(grading_s=104.5, graded_s=105.0, queued_s=-1.0, assigned_s=-1.0))] == [
        "waits to start",
        "rollout-0 · v3",
        "graded",
    ]
    assert lengths(row(grading_s=104.5, graded_s=105.0, queued_s=105.0, assigned_s=-1.0))[-1] == ("in the queue", 15.0)


def test_a_row_of_an_older_version_has_one_stretch_for_all_that_came_after_generation() -> None:
    assert lengths(row())[-1] == ("graded, decided, queued", 16.0)
    assert lengths(row(attempts=[])) == [("waits to start", 20.0), ("graded, decided, queued", 0.0)]
    assert stretches(row(admitted_s=-1.0)) == []
