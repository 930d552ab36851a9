"""Shares a machine's devices out: the learner its ranks, each rollout a block, so that many blocks share a fast link. Pure.

Letters: R ranks of the learner here, B devices of a rollout (`rollout.tensor_parallel_size`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sluice.errors import ConfigError
from sluice.gpus.machine import Device, Link, Machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Demand:
    """What a run wants of a machine."""

    ranks: int
    """R; 0 where no learner starts."""
    rollouts: int | Literal["auto"]
    block: int = 1
    """B."""

    @property
    def text(self) -> str:
        """The sum, for people."""
        least = 1 if self.rollouts == "auto" else self.rollouts
        parts = [f"{self.ranks} for the learner"] if self.ranks else []
        parts += [f"{least} x {self.block} for rollouts"] if least else []
        return f"{' + '.join(parts)} = {self.ranks + least * self.block}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Which device goes to whom."""

    learner: tuple[Device, ...] = ()
    rollouts: tuple[tuple[Device, ...], ...] = ()
    free: tuple[Device, ...] = ()
    shared: bool = False
    """Whether the rollouts compute on the learner's devices."""


def share_out(machine: Machine, demand: Demand) -> Plan:
    """The plan. Learner and rollouts share devices where there are exactly R. Raises ConfigError where they do not suffice."""
    devices = machine.devices
    shared = demand.ranks == len(devices) and demand.rollouts != 0
    learner = _all_of(machine, demand) if shared else _learner(machine, demand)
    left = [device for device in devices if shared or device not in learner]
    made = blocks(machine, left, size=demand.block, most=None if demand.rollouts == "auto" else demand.rollouts)
    if len(made) < (1 if demand.rollouts == "auto" else demand.rollouts):
        raise ConfigError(_too_few(machine, demand))
    taken = {device for block in made for device in block}
    free = tuple(device for device in left if device not in taken)
    return Plan(learner=learner, rollouts=tuple(made), free=free, shared=shared)


def blocks(machine: Machine, free: Sequence[Device], *, size: int, most: int | None) -> list[tuple[Device, ...]]:
    """At most `most` disjoint blocks of `size` devices; first those whose devices share the machine's fastest fitting link."""
    if size > 1:
        free = [device for device in free if not device.sliced]
    made: list[tuple[Device, ...]] = []
    for level in Link:  # what no fast island holds whole is made of what the fast islands leave
        for island in machine.islands(free, level=level):
            made += [tuple(island[i : i + size]) for i in range(0, len(island) - size + 1, size)]
        taken = {device for block in made for device in block}
        free = [device for device in free if device not in taken]
    return made[:most]


def _all_of(machine: Machine, demand: Demand) -> tuple[Device, ...]:
    if demand.ranks > 1 and any(device.sliced for device in machine.devices):
        raise ConfigError(_too_few(machine, demand))
    return machine.devices


def _learner(machine: Machine, demand: Demand) -> tuple[Device, ...]:
    """The learner's devices: of few islands, and those that leave most whole blocks."""
    usable = [device for device in machine.devices if demand.ranks == 1 or not device.sliced]
    if len(usable) < demand.ranks:
        raise ConfigError(_too_few(machine, demand))
    wanted = 1 if demand.rollouts == "auto" else demand.rollouts
    slices = [device for device in usable if device.sliced]
    if demand.block > 1 and slices and len(usable) - len(slices) < 1 + wanted * demand.block:
        usable = slices
    islands = machine.islands(usable, level=_level(machine, usable, demand))
    most = len(usable) if demand.rollouts == "auto" else demand.rollouts
    takes = _takes([len(island) for island in islands], ranks=demand.ranks, block=demand.block, most=most)
    return tuple(device for island, take in zip(islands, takes, strict=True) for device in island[:take])


def _level(machine: Machine, usable: Sequence[Device], demand: Demand) -> Link:
    """The fastest link that a whole block has; with blocks of one device, that the whole learner has."""
    size = demand.block if demand.block > 1 else demand.ranks
    for level in Link:
        if any(len(island) >= size for island in machine.islands(usable, level=level)):
            return level
    return Link.FAR


def _takes(sizes: Sequence[int], *, ranks: int, block: int, most: int) -> tuple[int, ...]:
    """How many devices the learner takes of each island: most whole blocks are left, then fewest islands are touched."""
    # (devices taken, blocks left, at most `most`) -> (islands touched, minus the takes so far: the first islands first)
    best: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {(0, 0): (0, ())}
    for size in sizes:
        after: dict[tuple[int, int], tuple[int, tuple[int, ...]]] = {}
        for (taken, left), (touched, takes) in best.items():
            for take in range(min(size, ranks - taken) + 1):
                state = (taken + take, min(most, left + (size - take) // block))
                value = (touched + (take > 0), (*takes, -take))
                after[state] = min(value, after.get(state, value))
        best = after
    _, value = min((-left, value) for (taken, left), value in best.items() if taken == ranks)
    return tuple(-take for take in value[1])


def _too_few(machine: Machine, demand: Demand) -> str:
    """One message with the sum."""
    has = f"this machine has {len(machine.devices)}"
    has += f" ({machine.hidden})" if machine.hidden else ""
    knobs = ["launch.learner_nproc_per_node"] if demand.ranks > 1 else []
    knobs += ["launch.rollout_replicas (or set it to auto)"] if demand.rollouts not in (0, 1, "auto") else []
    knobs += ["rollout.tensor_parallel_size"] if demand.block > 1 else []
    lower = " or ".join([", ".join(knobs[:-1]), knobs[-1]] if len(knobs) > 1 else knobs)
    fixes = [f"lower {lower}"] if lower else []
    if demand.rollouts != "auto" and demand.rollouts * demand.block <= demand.ranks < len(machine.devices):
        fixes += [f"or name exactly {demand.ranks} in launch.gpus, which learner and rollouts then share"]
    note = ""
    if any(device.sliced for device in machine.devices) and max(demand.ranks, demand.block) > 1:
        note = "; CUDA shows a process one MIG slice, so ranks and blocks of several need whole GPUs"
    return f"launch.gpus: {demand.text} GPUs, {has}: {', '.join(fixes) or 'use more GPUs'}{note}"
