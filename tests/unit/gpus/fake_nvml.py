"""A machine with GPUs as NVML shows it: functions of the real `pynvml` replaced one by one, so that no name is made up."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest


@dataclass(kw_only=True)
class FakeGpu:
    """One GPU; a handle is the GPU or a slice itself."""

    uuid: str
    slices: Sequence[str | None] | None = None
    """UUIDs of its MIG slices by their places, None for a free place; None: MIG is not supported."""
    broken: bool = False


@dataclass(kw_only=True)
class FakeNvml:
    gpus: Sequence[FakeGpu]
    nvlink: frozenset[tuple[int, int]] = frozenset()
    common: Mapping[tuple[int, int], int] = field(default_factory=dict)
    """The nearest common ancestor of a pair, as NVML_TOPOLOGY_..."""
    opened: int = 0

    def install(self, monkeypatch: pytest.MonkeyPatch) -> "FakeNvml":
        for name in dir(self):
            if name.startswith("nvml"):
                monkeypatch.setattr(pynvml, name, getattr(self, name))
        monkeypatch.setattr("sluice.gpus.nvml.torch_has_cuda", lambda: True)
        return self

    def nvmlInit(self) -> None:
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeGpu:
        if self.gpus[index].broken:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return self.gpus[index]

    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        return handle.uuid

    def nvmlDeviceGetName(self, handle: Any) -> str:
        return "Fake H100" if isinstance(handle, FakeGpu) else "Fake H100 MIG 3g.40gb"

    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        return SimpleNamespace(total=80 * 10**9 if isinstance(handle, FakeGpu) else 40 * 10**9)

    def nvmlDeviceGetMigMode(self, handle: FakeGpu) -> list[int]:
        if handle.slices is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE if handle.slices else pynvml.NVML_DEVICE_MIG_DISABLE] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: FakeGpu) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: FakeGpu, index: int) -> Any:
        slices = handle.slices or ()
        if index >= len(slices) or slices[index] is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return SimpleNamespace(uuid=slices[index], instance=index + 1)

    def nvmlDeviceGetGpuInstanceId(self, handle: Any) -> int:
        return handle.instance

    def nvmlDeviceGetComputeInstanceId(self, handle: Any) -> int:
        return 0

    def nvmlDeviceGetP2PStatus(self, one: FakeGpu, other: FakeGpu, index: int) -> int:
        assert index == pynvml.NVML_P2P_CAPS_INDEX_NVLINK
        linked = self._pair(one, other) in self.nvlink
        return pynvml.NVML_P2P_STATUS_OK if linked else pynvml.NVML_P2P_STATUS_NOT_SUPPORTED

    def nvmlDeviceGetTopologyCommonAncestor(self, one: FakeGpu, other: FakeGpu) -> int:
        if not self.common:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return self.common.get(self._pair(one, other), pynvml.NVML_TOPOLOGY_SYSTEM)

    def _pair(self, one: FakeGpu, other: FakeGpu) -> tuple[int, int]:
        first, second = sorted((self.gpus.index(one), self.gpus.index(other)))
        return first, second


def within(*islands: Sequence[int]) -> frozenset[tuple[int, int]]:
    """Every pair within an island."""
    return frozenset(pair for island in islands for pair in product(island, island) if pair[0] < pair[1])


def machine_of(count: int, *, islands: Sequence[Sequence[int]] = ()) -> FakeNvml:
    """`count` GPUs, those of an island linked by NVLink."""
    return FakeNvml(gpus=[FakeGpu(uuid=f"GPU-{n}a-uuid") for n in range(count)], nvlink=within(*islands))
