"""Clusters that the tests of this folder share."""

from collections.abc import Iterator

import pytest

from tests.cluster.ray_cluster import RayCluster, ray_cluster


@pytest.fixture(scope="session")
def ray_nodes() -> Iterator[RayCluster]:
    """Two nodes of Ray; a test that kills one adds it again."""
    with ray_cluster(nodes=2) as cluster:
        yield cluster
