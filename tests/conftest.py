"""Which tests may run beside each other (`pytest -n 2 --dist loadgroup`): files do, whole runs and engines never."""

from pathlib import Path

import pytest

ALONE = ("e2e", "chaos", "gpu", "compose")
"""Marks of tests that start an inference engine or everything there is: one worker does them all, in turn."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Before xdist reads the groups: gives each test its group, and those of ALONE, which take longest, the first place."""
    for item in items:
        alone = any(item.get_closest_marker(name) for name in ALONE)
        item.add_marker(pytest.mark.xdist_group("alone" if alone else str(Path(item.location[0]))))
    items.sort(key=lambda item: next(item.iter_markers("xdist_group")).args[0] != "alone")
