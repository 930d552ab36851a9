"""Which of a machine's devices a run may use: CUDA_VISIBLE_DEVICES first, then `launch.gpus`.

A device is named by the number of its GPU, a UUID or the beginning of one, or as a slice (MIG) by its UUID or by
`MIG-<UUID of the GPU>/1/0`. A GPU's number or UUID means all of its slices.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from sluice.errors import ConfigError
from sluice.gpus.machine import Device, Machine

VARIABLE = "CUDA_VISIBLE_DEVICES"

_NO_DEVICE = ("-1", "NoDevFiles")
"""What ends the list: CUDA's own word for none, and Slurm's."""


def allowed(
    machine: Machine, *, gpus: Literal["auto", "none"] | Sequence[int | str], environ: Mapping[str, str]
) -> Machine:
    """The machine with the devices that environment and recipe leave, in the order in which these name them.

    Raises ConfigError for a name that no device has, that several have, or that comes twice.
    """
    shown = _shown(machine, environ)
    if gpus == "none":
        return replace(shown, devices=(), hidden="launch.gpus: none")
    if gpus == "auto":
        return shown
    return _asked_for(machine, shown, [str(name) for name in gpus])


def _shown(machine: Machine, environ: Mapping[str, str]) -> Machine:
    text = environ.get(VARIABLE)
    if text is None or not machine.devices:
        return machine
    names: list[str] = []
    for name in (part.strip() for part in text.split(",")):
        if not name or name in _NO_DEVICE:
            break
        names.append(name)
    where = f"{VARIABLE}={text:.200}"
    return replace(machine, devices=_named(machine.devices, names, where=where, fix="correct it"), hidden=where)


def _asked_for(machine: Machine, shown: Machine, names: Sequence[str]) -> Machine:
    if not machine.has_gpus:
        raise ConfigError(
            f"launch.gpus: must name GPUs of this machine, got {', '.join(names)}, and none is found: the NVIDIA driver "
            "(`nvidia-smi -L`), the package nvidia-ml-py or a torch for CUDA is missing; set launch.gpus: auto to use what "
            "there is"
        )
    devices = _named(machine.devices, names, where="launch.gpus", fix="`nvidia-smi -L` lists them")
    if covered := [device.id for device in devices if device not in shown.devices]:
        raise ConfigError(
            f"launch.gpus: must name GPUs that {shown.hidden} leaves, got {', '.join(covered)}; numbers are those of "
            "`nvidia-smi -L`, not places in that list"
        )
    return replace(shown, devices=devices, hidden=f"launch.gpus: [{', '.join(names)}]")


def _named(devices: Sequence[Device], names: Sequence[str], *, where: str, fix: str) -> tuple[Device, ...]:
    found: list[Device] = []
    for name in names:
        meant = [device for device in devices if _is(device, name)]
        if not meant:
            have = ", ".join(device.id for device in devices)
            raise ConfigError(f"{where}: must name GPUs of this machine, which are {have}; got {name:.100}; {fix}")
        if len({device.number for device in meant}) > 1:
            several = ", ".join(device.uuid for device in meant)
            raise ConfigError(f"{where}: must name one GPU at a time, got {name}, which begins {several}; {fix}")
        if twice := [device.id for device in meant if device in found]:
            raise ConfigError(f"{where}: must name a GPU once, got {twice[0]} twice; {fix}")
        found += meant
    return tuple(found)


def _is(device: Device, name: str) -> bool:
    if name.isdecimal():
        return str(device.number) == (name.lstrip("0") or "0")
    if name.startswith("MIG-GPU-") or "/" in name:  # older drivers
        return device.sliced and f"{device.gpu_uuid}/{device.place}" == name.removeprefix("MIG-")
    return name.startswith(("GPU-", "MIG-")) and any(uuid.startswith(name) for uuid in (device.uuid, device.gpu_uuid))
