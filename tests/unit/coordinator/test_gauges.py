"""What the coordinator's endpoint says of the fleet, and where it sends Prometheus."""

from services.coordinator.api.gauges import fleet_gauges, targets
from services.coordinator.state.fleet import Fleet
from services.coordinator.state.member import Member, Role, State


def fleet_of(*names: str) -> Fleet:
    fleet = Fleet()
    for name in names:
        role = Role(name.partition("-")[0])
        address = f"{name}:19051"
        fleet.register(
            Member(
                service_id=name,
                role=role,
                address=address,
                incarnation=name,
                capacity=1,
                last_beat_s=0.0,
                metrics_address=address,
            )
        )
    return fleet


def beat(fleet: Fleet, name: str, *, now_s: float, draining: bool = False) -> None:
    assert fleet.beat(service_id=name, incarnation=name, running=0, draining=draining, now_s=now_s)


def test_one_that_fell_silent_is_lost_one_that_said_so_is_not() -> None:
    fleet = fleet_of("rollout-0", "rollout-1", "reward-0")
    beat(fleet, "rollout-1", now_s=5.0, draining=True)
    beat(fleet, "reward-0", now_s=100.0)
    assert len(fleet.sweep(now_s=101.0, timeout_s=10.0)) == 2
    assert fleet_gauges(fleet) == {
        "weights/rollouts_without_delta": 0.0,
        "fleet/rollouts_ready": 0.0,
        "fleet/rollouts_quarantined": 0.0,
        "fleet/rewards_ready": 1.0,
        "fleet/services_lost": 1.0,
    }


def test_a_rollout_that_gets_versions_whole_counts_once_others_get_deltas() -> None:
    fleet = fleet_of("rollout-0", "rollout-1")
    whole, other = (fleet.members[f"rollout-{number}"] for number in range(2))
    for member in (whole, other):
        fleet.set_state(member, State.READY)
        for _ in range(4):
            member.travelled("dense", sent_bytes=100)
    found = []
    for encoding in ("dense", "delta", "delta"):
        whole.travelled("dense", sent_bytes=100)
        other.travelled(encoding, sent_bytes=10)
        found.append(fleet_gauges(fleet)["weights/rollouts_without_delta"])
    whole.travelled("delta", sent_bytes=10)
    assert [*found, fleet_gauges(fleet)["weights/rollouts_without_delta"]] == [0.0, 1.0, 1.0, 0.0]


def test_targets_are_those_who_are_here_in_an_order_that_stays() -> None:
    fleet = fleet_of("rollout-1", "rollout-0", "reward-0")
    before = targets(fleet, run_id="r")
    assert [target.address for target in before] == ["reward-0:19051", "rollout-0:19051", "rollout-1:19051"]
    assert before[0].labels == {"run": "r", "role": "reward", "service_id": "reward-0"}
    fleet.least_loaded(fleet.of(Role.REWARD))  # takes turns, by changing the order of its members
    assert targets(fleet, run_id="r") == before
    fleet.lose(fleet.members["rollout-0"], "killed")
    assert [target.address for target in targets(fleet, run_id="r")] == ["reward-0:19051", "rollout-1:19051"]
