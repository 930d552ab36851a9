"""The push on paper against sums done by hand."""

import pytest

from benchmarks.relay_parts.model import BucketCosts, push_s

COSTS = BucketCosts(link_s=2.0, local_s=0.5, handling_s=1.0)


def test_a_chain_costs_its_length_once_and_pairs_cost_the_learners_link_each_time() -> None:
    hosts = {"L": "h0"} | {f"r{number}": f"h{number + 1}" for number in range(4)}
    chain = {"r0": "L", "r1": "r0", "r2": "r1", "r3": "r2"}
    assert push_s({"r0": "L"}, hosts, root="L", buckets=10, costs=COSTS) == {"r0": 30.0}
    assert push_s(chain, hosts, root="L", buckets=10, costs=COSTS) == {"r0": 30, "r1": 33, "r2": 36, "r3": 39}
    pairs = push_s(dict.fromkeys(chain, "L"), hosts, root="L", buckets=10, costs=COSTS)
    assert set(pairs.values()) == {10 * (4 * 2.0 + 1.0)}


def test_the_narrowest_link_sets_the_pace_and_a_host_serves_itself_from_memory() -> None:
    hosts = {"L": "h0", "a": "h1", "b": "h1", "c": "h2"}
    found = push_s({"a": "L", "b": "a", "c": "a"}, hosts, root="L", buckets=10, costs=COSTS)
    assert found == {"a": 30.0, "b": 31.5, "c": 33.0}
    slow = push_s(
        {"b": "a", "a": "L"}, hosts, root="L", buckets=2, costs=BucketCosts(link_s=0, local_s=9, handling_s=1)
    )
    assert slow == pytest.approx({"a": 2.0, "b": 21.0})
