"""Rollouts that pass versions on: what a chain promises when one of its rollouts dies, freezes, is slow, lies, joins or leaves.

One fleet for all tests: each begins with a chain of sound rollouts on machines of their own, and may spoil them.
"""

from collections.abc import AsyncIterator
from itertools import count
from pathlib import Path

import pytest
import pytest_asyncio

from services.coordinator.state.member import State
from sluice.clock import SystemClock
from sluice.weights.flights import DEPTH
from sluice.weights.sender import KEPT_VERSIONS
from tests.integration.relay_fleet import RelayFleet
from tests.rack import rack

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

LENGTH = 4
BUCKETS = 16
AFTER = 8
"""Buckets that have gone through a relay when its fault strikes."""

NAMES = (f"r{number}" for number in count())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RelayFleet]:
    async with RelayFleet(tmp_path_factory.mktemp("relay")).standing() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def chain(fleet: RelayFleet) -> list[str]:
    """The names of LENGTH sound rollouts that hold the newest version, in the order in which it went through them."""
    for _ in range(5):  # on a busy machine a rollout may have been put in doubt while the chain was made
        for name in [name for name, member in fleet.members.items() if member.relays_from_s > 0]:
            await fleet.lose(name)
        for name in list(fleet.members)[LENGTH:]:
            await fleet.lose(name)
        await fleet.add(*(next(NAMES) for _ in range(LENGTH - len(fleet.members))))
        if fleet.newest >= 0:
            await fleet.all_hold_it()
        await fleet.spread()
        if not any(member.relays_from_s > 0 for member in fleet.members.values()):
            break
    for rollout in fleet.rollouts.values():
        rollout.took()
    return fleet.chain()


def is_in_doubt(fleet: RelayFleet, name: str) -> bool:
    return fleet.members[name].relays_from_s > SystemClock().now()


async def test_the_learner_sends_once_and_a_newcomer_takes_what_the_last_has_kept(
    fleet: RelayFleet, chain: list[str]
) -> None:
    first, second, third, last = chain
    newcomer = next(NAMES)
    await fleet.add(newcomer)
    await fleet.all_hold_it()
    assert fleet.members[newcomer].source == last
    await fleet.spread()
    assert fleet.sources() == {first: "learner", second: first, third: second, last: third, newcomer: last}
    assert {rollout.took() for rollout in fleet.rollouts.values()} == {BUCKETS, 2 * BUCKETS}
    for _ in range(KEPT_VERSIONS):
        await fleet.spread()
    assert fleet.sender.links is not None
    assert list(fleet.sender.links.threads()) == [first]


async def test_behind_a_relay_that_dies_a_rollout_goes_on_where_it_was(fleet: RelayFleet, chain: list[str]) -> None:
    _, dying, orphan, _ = chain
    fleet.rollouts[dying].order_fault(AFTER, "SIGKILL")
    fleet.publish()
    await fleet.all_hold_it(but=dying)
    assert fleet.rollouts[orphan].took() <= BUCKETS + DEPTH, "it started over"
    await fleet.lose(dying)


async def test_behind_a_relay_that_freezes_a_rollout_goes_on_where_it_was(fleet: RelayFleet, chain: list[str]) -> None:
    _, frozen, orphan, _ = chain
    fleet.rollouts[frozen].order_fault(AFTER, "SIGSTOP")
    fleet.publish()
    await fleet.all_hold_it(but=frozen)
    assert fleet.rollouts[orphan].took() <= BUCKETS + DEPTH, "it started over"
    assert is_in_doubt(fleet, frozen)
    assert not any(is_in_doubt(fleet, name) for name in chain if name != frozen), "those behind were starved, no more"
    fleet.rollouts[frozen].signal("SIGCONT")
    await fleet.all_hold_it()


async def test_a_relay_that_is_slow_loses_its_receivers(fleet: RelayFleet, chain: list[str]) -> None:
    _, slow, orphan, _ = chain
    fleet.rollouts[slow].order_fault(2, "0.9")
    await fleet.spread()
    assert is_in_doubt(fleet, slow)
    assert fleet.members[orphan].source not in (slow, "learner")
    assert fleet.rollouts[orphan].took() <= BUCKETS + DEPTH


async def test_a_relay_that_lies_is_found_by_the_next_and_named_and_quarantined(
    fleet: RelayFleet, chain: list[str]
) -> None:
    _, liar, finder, _ = chain
    before = fleet.events.begin(after=0)
    fleet.rollouts[liar].order_fault(AFTER, "lie")
    await fleet.spread()
    told = [event for event in fleet.events._kept if event.sequence > before and event.kind == "service_quarantined"]
    assert [event.labels["service_id"] for event in told] == [liar]
    assert f"{liar} sent wrong bytes to {finder}: bucket {AFTER} of {BUCKETS}" in told[0].message
    assert fleet.members[finder].state is State.READY
    assert fleet.rollouts[finder].took() <= BUCKETS + DEPTH
    await fleet.spread()
    assert liar not in fleet.sources().values(), "nobody's source for the life of its process"


async def test_fifty_versions_over_changing_sources_leave_no_trace(fleet: RelayFleet, chain: list[str]) -> None:
    early: dict[str, dict[str, int]] = {}
    for epoch in range(50):
        doubted = fleet.members[chain[epoch % LENGTH]]
        doubted.relays_from_s = float("inf")
        await fleet.spread()
        assert doubted.service_id not in fleet.sources().values()
        doubted.relays_from_s = 0.0
        if epoch == 15:
            early = {name: rollout.footprint() for name, rollout in fleet.rollouts.items()}
    for name, rollout in fleet.rollouts.items():
        late = rollout.footprint()
        assert late["threads"] <= early[name]["threads"] + 1
        assert late["files"] <= early[name]["files"] + 4
        assert late["resident_bytes"] < early[name]["resident_bytes"] + (8 << 20)


async def test_what_has_changed_goes_from_rollout_to_rollout_and_a_newcomer_gets_the_whole(tmp_path: Path) -> None:
    fleet = RelayFleet(tmp_path, deltas=True)
    async with fleet.standing():
        await fleet.add("d0", "d1", "d2")
        for encoding in ("dense", "delta", "delta"):
            await fleet.spread()
            assert {member.encoding for member in fleet.members.values()} == {encoding}
            assert len(fleet.chain()) == 3
        await fleet.add("d3")
        await fleet.all_hold_it()
        assert (fleet.members["d3"].encoding, fleet.members["d3"].source) == ("dense", "learner")
        await fleet.spread()
        assert {member.encoding for member in fleet.members.values()} == {"delta"}
        assert len(fleet.chain()) == 4


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_rollouts_die_and_join_at_every_bucket_and_leave_one_digest_and_no_trace(
    fleet: RelayFleet, chain: list[str]
) -> None:
    early: dict[str, int] = {}
    stays = chain[0]
    for epoch in range(3 * BUCKETS + 2):
        order = fleet.chain()
        dying = order[1 + epoch % (len(order) - 2)]
        fleet.rollouts[dying].order_fault(epoch % BUCKETS, "SIGKILL")
        fleet.publish()
        await fleet.add(next(NAMES))
        await fleet.all_hold_it(but=dying)
        await fleet.lose(dying)
        await fleet.spread()
        if epoch == BUCKETS:
            early = fleet.rollouts[stays].footprint()
    late = fleet.rollouts[stays].footprint()
    print(f"early {early}, late {late}")
    assert late["threads"] <= early["threads"] + KEPT_VERSIONS
    assert late["files"] <= early["files"] + 4 * KEPT_VERSIONS
    assert late["resident_bytes"] < early["resident_bytes"] + (8 << 20)


@pytest.mark.chaos
@pytest.mark.needs("rack")
@pytest.mark.timeout(600)
async def test_to_sixteen_machines_behind_one_narrow_link_the_bytes_cross_the_link_once(tmp_path: Path) -> None:
    total_bytes = 2 << 20
    with rack(16, megabit_per_s=40.0) as machines:
        fleet = RelayFleet(tmp_path, rack=machines, total_bytes=total_bytes, timeout_s=30.0)
        async with fleet.standing():
            await fleet.add(*machines.machines)
            await fleet.spread()
            before = machines.sent_bytes()
            push_ms = await fleet.push_ms()
            sent = (machines.sent_bytes() - before) / total_bytes
            print(f"push_ms {push_ms:.0f}, bytes over the link / payload {sent:.2f}")
            assert len(fleet.chain()) == 16
            assert sent < 1.2
