"""What a machine has to compute on: GPUs and slices of GPUs (MIG), and how fast each pair is linked. Pure; nvml.py
finds the GPUs of this machine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum


class Link(IntEnum):
    """The way between two GPUs, the fastest first."""

    NVLINK = 0
    SWITCH = 1
    """PCIe switches of one board, without a host bridge."""
    CPU = 2
    """PCIe through the host bridges of one CPU."""
    FAR = 3
    """From one CPU to another, or not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """A GPU, or a slice of one. CUDA shows a process one slice at most, so a slice never works with another device."""

    number: int
    """Of the GPU, as `nvidia-smi -L` prints it."""
    uuid: str
    """`GPU-...`, of a slice `MIG-...`."""
    gpu_uuid: str
    """Of the GPU that a slice is part of; a whole GPU's own."""
    place: str = ""
    """Of a slice: GPU instance / compute instance, as older drivers name it (`MIG-<gpu_uuid>/1/0`)."""
    name: str = ""
    memory_bytes: int = 0
    """0: not known."""

    @property
    def sliced(self) -> bool:
        """Whether the device is a slice."""
        return self.uuid != self.gpu_uuid

    @property
    def id(self) -> str:
        """What CUDA_VISIBLE_DEVICES takes, with CUDA_DEVICE_ORDER=PCI_BUS_ID."""
        return self.uuid if self.sliced else str(self.number)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The devices of a machine that a run may use, in the order in which they are given out."""

    devices: tuple[Device, ...] = ()
    links: Mapping[frozenset[str], Link] = field(default_factory=dict)
    """By the ids of two GPUs. A pair that is not listed is FAR; without any link all pairs count as alike."""
    has_gpus: bool = False
    """Whether the machine has any, allowed or not: a service without one is then told so."""
    hidden: str = ""
    """What leaves devices out, `CUDA_VISIBLE_DEVICES=0,1`; empty: nothing does."""

    def link_between(self, one: Device, other: Device) -> Link:
        """The way between two devices."""
        return self.links.get(frozenset((one.id, other.id)), Link.FAR)

    def islands(self, among: Sequence[Device], *, level: Link) -> list[list[Device]]:
        """The devices in sets of which every pair is linked at `level` or faster; a slice is a set of its own."""
        made: list[list[Device]] = []
        for device in (device for device in among if not device.sliced):
            for island in made:
                if not self.links or all(self.link_between(device, other) <= level for other in island):
                    island.append(device)
                    break
            else:
                made.append([device])
        return [*made, *([device] for device in among if device.sliced)]


def imagined(count: int, *, memory_bytes: int) -> Machine:
    """A machine with `count` GPUs, of whose links nothing is known."""
    uuids = [f"GPU-{number}" for number in range(count)]
    devices = (Device(number=n, uuid=u, gpu_uuid=u, memory_bytes=memory_bytes) for n, u in enumerate(uuids))
    return Machine(devices=tuple(devices), has_gpus=count > 0)
