"""The tree of sources: for any fleet a tree, the learner's part of the work constant, little moved when somebody goes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from services.coordinator.weights.plan import LOCAL_AT_LEARNER, Receiver, plan_sources


def in_a_memory_of_its_host(receiver: Receiver) -> Receiver:
    """The drawn number is that of one of the host's memories; 0: of none."""
    return replace(receiver, memory=f"{receiver.host}.{receiver.memory}" if receiver.memory else "")


HOSTS = ("h0", "h1", "h2", "h3", "h4")
RECEIVERS = st.lists(
    st.builds(
        Receiver,
        name=st.integers(0, 30).map("r{}".format),
        host=st.sampled_from(HOSTS),
        bytes_per_s=st.sampled_from((0.0, 1e8, 1e9)),
        may_relay=st.integers(0, 3).map(bool),
        memory=st.integers(0, 2),
        has_begun=st.booleans(),
    ).map(in_a_memory_of_its_host),
    max_size=24,
    unique_by=lambda receiver: receiver.name,
)


def planned(receivers: Sequence[Receiver], former: Mapping[str, str] | None = None) -> dict[str, str]:
    """The plan, once everything that holds for each plan was seen to hold for it."""
    sources = plan_sources(receivers, root="L", root_host="h0", former=former)
    by_name = {receiver.name: receiver for receiver in receivers}
    assert sources.keys() == by_name.keys()
    for name in sources:
        links = 0
        while name != "L":
            name, links = sources[name], links + 1
            assert links <= len(sources), "a circle"
            assert name == "L" or by_name[name].may_relay
    mapping = {
        name
        for name, source in sources.items()
        if source != "L" and by_name[name].memory and by_name[name].memory == by_name[source].memory
    }
    for memory in {receiver.memory for receiver in receivers if receiver.may_relay} - {""}:
        receiving = [receiver for receiver in receivers if receiver.memory == memory and receiver.name not in mapping]
        assert len(receiving) == 1, "of one memory one receives the bytes"
        assert receiving[0].has_begun or not any(
            receiver.has_begun and receiver.may_relay for receiver in receivers if receiver.memory == memory
        )
    assert not mapping & set(sources.values()), "who maps a copy has nothing to pass on"
    relays = [receiver.name for receiver in receivers if receiver.may_relay and receiver.name not in mapping]
    served = Counter(sources[name] for name in relays)
    assert served["L"] <= LOCAL_AT_LEARNER + 1
    assert all(served[name] <= 2 for name in relays)
    sources, everybody = {name: source for name, source in sources.items() if name not in mapping}, sources
    by_name = {name: by_name[name] for name in sources}
    if relays:
        assert not any(sources[name] == "L" for name in by_name.keys() - set(relays))
    entries = Counter(by_name[name].host for name in relays if host_of(sources[name], by_name) != by_name[name].host)
    assert all(number == 1 for number in entries.values()), entries
    assert "h0" not in entries
    feeding = Counter(host_of(sources[name], by_name) for name in relays)
    for name in relays:
        if host_of(sources[name], by_name) == by_name[name].host:
            feeding[by_name[name].host] -= 1
    assert all(number <= 1 for number in feeding.values()), "one link of a host out, whatever its number of rollouts"
    return everybody


def host_of(name: str, by_name: Mapping[str, Receiver]) -> str:
    return "h0" if name == "L" else by_name[name].host


@settings(max_examples=50, deadline=None)
@given(RECEIVERS)
def test_any_fleet_gets_a_tree_with_one_entry_a_host_and_a_constant_share_for_the_learner(
    receivers: list[Receiver],
) -> None:
    assert planned(receivers) == planned(receivers[::-1]), "the order in which rollouts are listed decides nothing"


@settings(max_examples=50, deadline=None)
@given(RECEIVERS, st.data())
def test_whoever_has_a_source_keeps_it_when_others_come_go_or_fall_into_doubt(
    receivers: list[Receiver], data: st.DataObject
) -> None:
    former = planned(receivers)
    fates = data.draw(st.lists(st.sampled_from("ssssgd"), min_size=len(receivers), max_size=len(receivers)))
    left = [
        replace(receiver, may_relay=receiver.may_relay and fate != "d")
        for receiver, fate in zip(receivers, fates, strict=True)
        if fate != "g"
    ]
    newcomer = Receiver(name="new", host=data.draw(st.sampled_from(HOSTS)))
    sources = planned([*left, newcomer], former)
    sound = {"L"} | {receiver.name for receiver in left if receiver.may_relay}
    for receiver in left:
        if receiver.memory == "" and receiver.may_relay and former[receiver.name] in sound:
            assert sources[receiver.name] == former[receiver.name]


def test_hosts_stand_in_one_chain_the_narrowest_link_last() -> None:
    fleet = [
        Receiver(name=f"{host}.{number}", host=host, bytes_per_s=rate)
        for host, rate in (("a", 1e8), ("b", 1e9), ("c", 0.0))
        for number in range(3)
    ]
    assert planned(fleet) == {
        "c.0": "L", "c.1": "c.0", "c.2": "c.1",
        "b.0": "c.0", "b.1": "b.0", "b.2": "b.1",
        "a.0": "b.0", "a.1": "a.0", "a.2": "a.1",
    }  # fmt: skip


def test_the_learners_own_host_is_served_by_the_learner_up_to_a_number() -> None:
    fleet = [Receiver(name=f"r{number}", host="h0") for number in range(6)]
    assert planned(fleet) == {"r0": "L", "r1": "L", "r2": "L", "r3": "L", "r4": "r0", "r5": "r1"}


def test_rollouts_of_one_memory_hang_on_the_one_that_began_or_on_the_one_of_last_time() -> None:
    fleet = [Receiver(name=f"r{number}", host=f"h{1 + number // 3}", memory=f"m{number // 3}") for number in range(6)]
    former = planned(fleet)
    assert former == {"r0": "L", "r1": "r0", "r2": "r0", "r3": "r0", "r4": "r3", "r5": "r3"}
    assert planned(fleet[1:], former) == {"r1": "L", "r2": "r1", "r3": "r1", "r4": "r3", "r5": "r3"}
    begun = [replace(receiver, has_begun=receiver.name == "r2") for receiver in fleet]
    assert planned(begun, former)["r0"] == "r2"
    named_first = [Receiver(name="a", host="h1", memory="m0"), *fleet]
    assert planned(named_first, former)["a"] == "r0", "a newcomer changes nothing"


def test_a_newcomer_has_a_source_where_relays_without_the_bytes_keep_all_links() -> None:
    """Histories that random ones found, one in 40,000: their relay died, or the learner came to the host of a relay."""
    near, far = Receiver(name="a", host="h0", bytes_per_s=1.0), Receiver(name="b", host="h1")
    new, entry = Receiver(name="new", host="h1"), Receiver(name="w", host="h2")
    of = {"root": "L", "root_host": "h0"}
    former = {"a": "gone", "gone": "L", "b": "a", "new": "gone"}
    assert plan_sources([near, far, new], **of, former=former) == {"b": "a", "new": "L", "a": "L"}
    former = {"w": "gone", "a": "w", "b": "a"}
    assert plan_sources([near, far, new, entry], **of, former=former) == {"a": "w", "b": "a", "w": "L", "new": "b"}


def test_a_chain_closes_over_a_relay_that_died_and_puts_a_relay_in_doubt_at_its_end() -> None:
    fleet = [Receiver(name=f"r{number}", host=f"host{number}") for number in range(5)]
    former = planned(fleet)
    assert planned([fleet[0], *fleet[2:]], former) == {"r0": "L", "r2": "r0", "r3": "r2", "r4": "r3"}
    doubted = [replace(fleet[0], may_relay=False), *fleet[1:]]
    assert planned(doubted, former) == {"r1": "L", "r2": "r1", "r3": "r2", "r4": "r3", "r0": "r4"}


def test_512_rollouts_are_planned_in_a_moment_and_hang_on_the_learner_by_one_link() -> None:
    fleet = [Receiver(name=f"r{number:03}", host=f"host{number // 8:02}") for number in range(512)]
    sources = planned(fleet)
    assert list(sources.values()).count("L") == 1
    assert planned(fleet[8:], sources)["r008"] == "L"
