"""Finds this machine's GPUs through NVML, the library of the NVIDIA driver. No CUDA context is made.

Numbers are NVML's, which are those of `nvidia-smi` and of CUDA_DEVICE_ORDER=PCI_BUS_ID. A GPU with MIG switched on counts as
its slices. Not run on a machine with a driver: tests replace functions of the real `pynvml`.
"""

import contextlib
import importlib.util
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

from sluice.gpus.machine import Device, Link, Machine


def find_machine() -> Machine:
    """All GPUs of this machine; none without the driver or `pynvml`, and none where the installed torch is built for CPUs."""
    if not torch_has_cuda():
        return Machine()
    with _nvml() as nvml:
        return Machine() if nvml is None else _machine(nvml)


def torch_has_cuda() -> bool:
    """Whether the installed torch is built for CUDA, by its files: torch takes seconds to import. True without torch."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return True
    return (Path(found.origin).parent / "lib" / "libtorch_cuda.so").exists()


@contextlib.contextmanager
def _nvml() -> Iterator[ModuleType | None]:
    """`pynvml`, initialised; None where there is no package, no library or no driver."""
    try:
        import pynvml
    except ImportError:
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def _machine(nvml: ModuleType) -> Machine:
    devices: list[Device] = []
    wholes: list[tuple[Device, Any]] = []
    for number in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(number)
            uuid = nvml.nvmlDeviceGetUUID(handle)
        except nvml.NVMLError:  # a GPU that has fallen off the bus, or that this container may not use
            continue
        if _is_sliced(nvml, handle):
            devices += _slices(nvml, handle, number=number, gpu_uuid=uuid)
            continue
        whole = Device(number=number, uuid=uuid, gpu_uuid=uuid, **_size(nvml, handle))
        devices.append(whole)
        wholes.append((whole, handle))
    return Machine(devices=tuple(devices), links=_links(nvml, wholes), has_gpus=bool(devices))


def _is_sliced(nvml: ModuleType, handle: Any) -> bool:
    try:
        return nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # not supported: older or smaller than an A100
        return False


def _slices(nvml: ModuleType, handle: Any, *, number: int, gpu_uuid: str) -> Iterator[Device]:
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            part = nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            uuid = nvml.nvmlDeviceGetUUID(part)
            place = f"{nvml.nvmlDeviceGetGpuInstanceId(part)}/{nvml.nvmlDeviceGetComputeInstanceId(part)}"
        except nvml.NVMLError:  # not every place is taken
            continue
        yield Device(number=number, uuid=uuid, gpu_uuid=gpu_uuid, place=place, **_size(nvml, part))


def _size(nvml: ModuleType, handle: Any) -> dict[str, Any]:
    """Name and memory, as far as the driver tells."""
    said: dict[str, Any] = {}
    with contextlib.suppress(nvml.NVMLError):
        said["name"] = nvml.nvmlDeviceGetName(handle)
    with contextlib.suppress(nvml.NVMLError):
        said["memory_bytes"] = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return said


def _links(nvml: ModuleType, wholes: Sequence[tuple[Device, Any]]) -> dict[frozenset[str], Link]:
    return {
        frozenset((one.id, other.id)): _link(nvml, handle, peer)
        for (one, handle), (other, peer) in combinations(wholes, 2)
    }


def _link(nvml: ModuleType, handle: Any, peer: Any) -> Link:
    with contextlib.suppress(nvml.NVMLError):
        # One hop of NVLink, directly or through NVSwitch: what vLLM asks before its own all-reduce.
        status = nvml.nvmlDeviceGetP2PStatus(handle, peer, nvml.NVML_P2P_CAPS_INDEX_NVLINK)
        if status == nvml.NVML_P2P_STATUS_OK:
            return Link.NVLINK
    try:
        common = nvml.nvmlDeviceGetTopologyCommonAncestor(handle, peer)
    except nvml.NVMLError:
        return Link.FAR
    if common <= nvml.NVML_TOPOLOGY_MULTIPLE:
        return Link.SWITCH
    return Link.CPU if common <= nvml.NVML_TOPOLOGY_NODE else Link.FAR
