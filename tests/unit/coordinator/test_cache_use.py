"""What heartbeats of rollouts say of their KV caches, as figures of a step."""

import math

import pytest

from services.coordinator.state.cache_use import CacheUse
from services.coordinator.state.member import Member, Role


def rollout(name: str) -> Member:
    return Member(service_id=name, role=Role.ROLLOUT, address="a:1", incarnation=name, capacity=1, last_beat_s=0.0)


def test_the_fullest_cache_and_all_preemptions_of_a_step_are_reported() -> None:
    use, one, other = CacheUse(), rollout("one"), rollout("other")
    assert use.metrics() == {}
    use.add(one, kv_use=0.5, preemptions=7)  # before this coordinator listened
    use.add(other, kv_use=0.9, preemptions=0)
    use.add(one, kv_use=0.2, preemptions=9)
    use.add(other, kv_use=0.1, preemptions=1)
    assert use.metrics() == {"rollout/kv_use": 0.9, "rollout/preemptions": 3.0}
    use.clear()
    use.add(one, kv_use=0.3, preemptions=9)
    assert use.metrics() == {"rollout/kv_use": 0.3, "rollout/preemptions": 0.0}


@pytest.mark.parametrize("kv_use", [None, math.nan, math.inf, -0.1, 1.1])
def test_a_share_that_cannot_be_is_not_taken(kv_use: float | None) -> None:
    use, one = CacheUse(), rollout("one")
    use.add(one, kv_use=kv_use, preemptions=5)
    assert (use.metrics(), one.preemptions) == ({}, None)


def test_a_count_that_falls_or_is_no_count_is_no_preemption() -> None:
    use, one = CacheUse(), rollout("one")
    for preemptions in (5, 3, -4, 1 << 62):
        use.add(one, kv_use=0.5, preemptions=preemptions)
    assert use.metrics()["rollout/preemptions"] == float(1 << 53)
