"""Tests whose need is not met are left out and counted by reason; the others run."""

from collections import Counter
from collections.abc import Iterator

import pytest

from tests import needs
from tests.needs import met_and_missing


@pytest.fixture
def item(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.Item]:
    """This test itself, on a machine that has `tool` and neither `cable` nor `disk`."""
    probes = {"tool": lambda: None, "cable": lambda: "nobody laid one", "disk": lambda: "full"}
    monkeypatch.setattr(needs, "_PROBES", probes)
    needs._missing.cache_clear()
    yield request.node
    needs._missing.cache_clear()


def test_a_test_without_needs_runs(item: pytest.Item) -> None:
    assert met_and_missing([item]) == ([item], [], Counter())


def test_a_need_that_is_met_leaves_nothing_out(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.needs("tool"))
    assert met_and_missing([item]) == ([item], [], Counter())


def test_what_is_missing_is_named_with_its_reason_and_the_number_of_tests(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.needs("tool", "cable"))
    assert met_and_missing([item, item]) == ([], [item, item], Counter({"cable: nobody laid one": 2}))


def test_all_that_is_missing_is_named(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.needs("cable", "disk"))
    assert met_and_missing([item])[2] == Counter({"cable: nobody laid one; disk: full": 1})


def test_a_gpu_test_needs_a_device_without_saying_so(item: pytest.Item, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "_PROBES", {"cuda": lambda: "no device"})
    item.add_marker(pytest.mark.gpu)
    assert met_and_missing([item]) == ([], [item], Counter({"cuda: no device": 1}))


def test_a_need_that_nobody_knows_is_refused(item: pytest.Item) -> None:
    item.add_marker(pytest.mark.needs("tol"))
    with pytest.raises(pytest.UsageError, match=r"needs\('tol'\): tests/needs.py knows only cable, disk, tool"):
        met_and_missing([item])
