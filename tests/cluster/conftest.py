"""Clusters that the tests of this folder share."""

import os
from collections.abc import Iterator

import pytest

from tests.cluster.ray_cluster import RayCluster, ray_cluster


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[RayCluster]:
    """Two nodes of Ray; a test that kills one adds it again."""
    with ray_cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _ray_leaves_no_variables() -> Iterator[None]:
    """Ray's library sets variables of this process, which the tasks of another engine would inherit."""
    before = set(os.environ)
    yield
    for name in set(os.environ) - before:
        if name.startswith("RAY_"):
            del os.environ[name]
