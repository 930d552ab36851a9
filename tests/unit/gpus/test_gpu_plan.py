"""Who gets which device: no device twice, blocks within a fast island wherever that can be, one message for too few."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.errors import ConfigError
from sluice.gpus.gpu_plan import Demand, Plan, share_out
from sluice.gpus.machine import Device, Link, Machine
from tests.unit.gpus.fake_nvml import within

ISLANDS_OF_FOUR = [(0, 1, 2, 3), (4, 5, 6, 7)]


def machine(count: int, *islands: tuple[int, ...], slices: int = 0, link: Link = Link.NVLINK) -> Machine:
    wholes = [Device(number=n, uuid=f"GPU-{n}", gpu_uuid=f"GPU-{n}") for n in range(count)]
    parts = [Device(number=99, uuid=f"MIG-{n}", gpu_uuid="GPU-99") for n in range(slices)]
    links = {frozenset(map(str, pair)): link for pair in within(*islands)}
    return Machine(devices=(*wholes, *parts), links=links, has_gpus=True)


def shown(plan: Plan) -> str:
    """`0,1 | 2,3 4,5 | 6`: learner, rollouts, free."""
    blocks = (",".join(device.id for device in block) for block in plan.rollouts)
    return " | ".join((",".join(d.id for d in plan.learner), " ".join(blocks), ",".join(d.id for d in plan.free)))


@pytest.mark.parametrize(
    ("devices", "demand", "expected"),
    [
        (machine(2), Demand(ranks=1, rollouts=1), "0 | 1 | "),
        (machine(8), Demand(ranks=4, rollouts="auto"), "0,1,2,3 | 4 5 6 7 | "),
        (machine(8, *ISLANDS_OF_FOUR), Demand(ranks=2, rollouts=1, block=4), "0,1 | 4,5,6,7 | 2,3"),
        (machine(8, *ISLANDS_OF_FOUR), Demand(ranks=3, rollouts="auto", block=2), "0,1,2 | 4,5 6,7 | 3"),
        (machine(8, (0, 4), (1, 5), (2, 6), (3, 7)), Demand(ranks=2, rollouts=3, block=2), "0,4 | 1,5 2,6 3,7 | "),
        (machine(8, *ISLANDS_OF_FOUR), Demand(ranks=0, rollouts=1, block=8), " | 0,1,2,3,4,5,6,7 | "),
        (machine(7, (0, 1, 2), (3, 4, 5, 6)), Demand(ranks=1, rollouts=2, block=3), "3 | 0,1,2 4,5,6 | "),
        (machine(8, *ISLANDS_OF_FOUR, link=Link.CPU), Demand(ranks=4, rollouts=1, block=4), "0,1,2,3 | 4,5,6,7 | "),
        (machine(4), Demand(ranks=2, rollouts=0), "0,1 |  | 2,3"),
        (machine(0, slices=2), Demand(ranks=1, rollouts=1), "MIG-0 | MIG-1 | "),
        (machine(2, slices=1), Demand(ranks=1, rollouts=1, block=2), "MIG-0 | 0,1 | "),
        (machine(2, slices=1), Demand(ranks=2, rollouts="auto"), "0,1 | MIG-0 | "),
    ],
)
def test_worked_examples(devices: Machine, demand: Demand, expected: str) -> None:
    assert shown(share_out(devices, demand)) == expected


def test_learner_and_rollouts_share_where_there_are_only_as_many_as_ranks() -> None:
    one = share_out(machine(1), Demand(ranks=1, rollouts=1))
    assert (shown(one), one.shared) == ("0 | 0 | ", True)
    two = share_out(machine(2), Demand(ranks=2, rollouts=1))
    assert (shown(two), two.shared) == ("0,1 | 0 | 1", True)
    assert shown(share_out(machine(2), Demand(ranks=2, rollouts="auto", block=2))) == "0,1 | 0,1 | "
    assert not share_out(machine(2), Demand(ranks=1, rollouts="auto")).shared
    assert not share_out(machine(1), Demand(ranks=1, rollouts=0)).shared


@pytest.mark.parametrize(
    ("devices", "demand", "said"),
    [
        (
            machine(8),
            Demand(ranks=4, rollouts=3, block=2),
            "launch.gpus: 4 for the learner + 3 x 2 for rollouts = 10 GPUs, this machine has 8: lower "
            "launch.learner_nproc_per_node, launch.rollout_replicas (or set it to auto) or rollout.tensor_parallel_size",
        ),
        (
            machine(3),
            Demand(ranks=2, rollouts=2),
            "= 4 GPUs, this machine has 3: lower launch.learner_nproc_per_node or launch.rollout_replicas (or set it to auto), "
            "or name exactly 2 in launch.gpus, which learner and rollouts then share",
        ),
        (
            machine(1),
            Demand(ranks=1, rollouts=2),
            "1 for the learner + 2 x 1 for rollouts = 3 GPUs, this machine has 1: ",
        ),
        (
            machine(2),
            Demand(ranks=4, rollouts="auto"),
            "4 for the learner + 1 x 1 for rollouts = 5 GPUs, this machine has 2: ",
        ),
        (machine(0, slices=4), Demand(ranks=2, rollouts=1), "CUDA shows a process one MIG slice"),
        (machine(0, slices=2), Demand(ranks=2, rollouts=1), "CUDA shows a process one MIG slice"),
        (machine(2, slices=3), Demand(ranks=1, rollouts=2, block=2), "1 for the learner + 2 x 2 for rollouts = 5 GPUs"),
    ],
)
def test_too_few_is_one_message_with_the_sum(devices: Machine, demand: Demand, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        share_out(devices, demand)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    ranks=st.integers(1, 5),
    block=st.integers(2, 4),
    rollouts=st.integers(1, 4),
)
def test_no_device_twice_and_as_many_blocks_within_an_island_as_can_be(
    sizes: list[int], ranks: int, block: int, rollouts: int
) -> None:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    islands = [tuple(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]
    devices, count, of_blocks = machine(sum(sizes), *islands), sum(sizes), rollouts * block
    try:
        plan = share_out(devices, Demand(ranks=ranks, rollouts=rollouts, block=block))
    except ConfigError:
        assert count < ranks + of_blocks
        assert count != ranks or count < of_blocks
        return
    of_rollouts = [device.number for part in plan.rollouts for device in part]
    numbers = [device.number for device in (plan.free if plan.shared else (*plan.learner, *plan.free))] + of_rollouts
    assert sorted(numbers) == list(range(count))
    assert len(plan.learner) == ranks
    assert [len(part) for part in plan.rollouts] == [block] * rollouts
    if plan.shared or not any(len(island) >= block for island in islands):
        return

    def whole(left: set[int]) -> int:
        return min(rollouts, sum(len(left & set(island)) // block for island in islands))

    everything = set(range(count))
    best = max(whole(everything - set(taken)) for taken in combinations(sorted(everything), ranks))
    assert sum(any({d.number for d in part} <= set(island) for island in islands) for part in plan.rollouts) == best
