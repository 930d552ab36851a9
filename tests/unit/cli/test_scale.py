"""`sluice scale` prints what it asked for, and which of the services asked for wait for a place."""

from argparse import Namespace

from sluice.cli.control import _scale
from sluice.v1 import coordinator_pb2 as pb


class Waiting:
    """A run in which a rollout waits for a place, and other things wait for something else."""

    def scale(self, role: str, replicas: int) -> int:
        return replicas

    def status(self) -> pb.GetStatusResponse:
        whys = {
            "rollout-1": "waits for a place: no node has 1 GPU free (launch.place_timeout_s is 1800)",
            "rollout-0": "syncing",
            "reward-1": "waits for a place: no node has 1 CPU free",
        }
        return pb.GetStatusResponse(waits=[pb.Wait(who=who, why=why) for who, why in whys.items()])


def test_who_waits_for_a_place_is_named_with_the_reason() -> None:
    assert _scale(Waiting(), Namespace(role="rollout", replicas=2)).splitlines() == [
        "rollout: 2 replicas asked for",
        "rollout-1 waits for a place: no node has 1 GPU free (launch.place_timeout_s is 1800)",
    ]
