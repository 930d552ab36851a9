"""Clusters that the tests of this folder share."""

import os
from collections.abc import Iterator

import pytest

from tests.cluster.ray_cluster import RayCluster, ray_cluster

BEFORE_RAY = frozenset(os.environ)


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[RayCluster]:
    """Two nodes of Ray; a test that kills one adds it again."""
    with ray_cluster(nodes=2) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _no_variables_of_ray() -> None:
    """Ray's library sets variables of this process, which the tasks of another engine would inherit."""
    for name in set(os.environ) - BEFORE_RAY:
        if name.startswith("RAY_"):
            del os.environ[name]
