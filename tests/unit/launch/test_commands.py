"""The command lines of the services that `sluice up` starts."""

import argparse
from pathlib import Path

import pytest

from sluice.config.schema import Config
from sluice.launch.commands import coordinator_command
from sluice.rpc.service import metrics_port


@pytest.mark.parametrize(
    ("configured", "port", "metrics"),
    [(18050, 18050, 19050), (0, 0, 0), (0, 43210, 0), (18050, 0, 0)],
    ids=["as configured: its neighbour", "any", "started again where it was", "one that serves a run that lies still"],
)
def test_the_coordinators_metrics_are_where_prometheus_looks_unless_its_port_is_chance(
    configured: int, port: int, metrics: int
) -> None:
    config = Config.model_validate(
        {"model": {"path": "m"}, "data": {"train_files": ["x"]}, "network": {"coordinator_port": configured}}
    )
    argv = coordinator_command(config, run_dir=Path("r"), redis_url="redis://", port=port, ready_fd=None).argv
    flags = argparse.ArgumentParser()
    flags.add_argument("--port", type=int)
    flags.add_argument("--metrics-port", type=int)
    assert metrics_port(flags.parse_known_args(argv)[0]) == metrics
