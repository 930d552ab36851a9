"""Every link of a run is cut for longer than a service may be silent, and mended: nobody hangs, nothing is lost."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice.rpc.tokens import make_tokens
from tests.chaos.links import Cables, Link, Ports, three_machines
from tests.chaos.plan import Victim
from tests.free_port import free_port

pytestmark = [pytest.mark.chaos, pytest.mark.needs("machines"), pytest.mark.timeout(500)]

CUT_S = 8.0
"""Longer than a heartbeat may be missing (2 s) and than a transfer of weights may stand still (5 s)."""


@pytest.fixture
def cables() -> Iterator[Cables]:
    with three_machines() as made:
        yield made


@pytest.mark.parametrize("link", Link, ids=lambda link: link.value)
def test_a_run_outlasts_a_cut_link(start_trial, cables: Cables, link: Link, tmp_path: Path) -> None:
    rollout_port, credentials = free_port(), tmp_path / "credentials"
    make_tokens(credentials, private_network=True)

    def services(coordinator: str) -> list[list[str]]:
        """A rollout and a reward, each on its own machine."""
        return [
            cables.command(
                machine,
                *(sys.executable, "-m", f"services.{role}", "--service-id", f"{role}-0"),
                *("--coordinator", coordinator, "--bind", "0.0.0.0", "--advertise", address, "--port", str(port)),
                *("--metrics-port", "0", "--credentials", str(credentials / role)),
            )
            for role, machine, address, port in (
                ("rollout", cables.rollout, cables.rollout_address, rollout_port),
                ("reward", cables.reward, cables.reward_address, 0),
            )
        ]

    trial = start_trial(
        *("launch.rollout_replicas=0", "launch.reward_replicas=0"),
        *("network.bind=0.0.0.0", f"network.advertise={cables.hub_address}", f"network.credentials={credentials}"),
        credentials=credentials,
        host=cables.hub_address,
        prefix=cables.command(cables.hub),
        beside=services,
    )
    with trial:
        trial.until(lambda: trial.steps() >= 5, what="step 5")
        learner = trial.witness.address_of(Victim.LEADER).rpartition(":")[2]
        ports = Ports(coordinator=trial.port, rollout=rollout_port, learner=int(learner))
        trial.cut(
            f"{link.value} cut for {CUT_S:.0f} s",
            cut=lambda: cables.cut(link, ports),
            mend=cables.mend,
            for_s=CUT_S,
        )
        trial.finish()
