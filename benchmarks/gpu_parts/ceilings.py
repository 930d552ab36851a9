"""Versions, and what the device does at best: a large product, copies in its memory, to the host and from it."""

import importlib.util
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import torch

from benchmarks.gpu_parts.context import Context, Figure, seconds
from sluice.accelerator import host_memory, identity, memory_bytes

PACKAGES = ("torch", "triton", "transformers", "vllm", "peft", "grpcio", "numpy")


def run(context: Context) -> Iterator[Figure]:
    """Figures whose `ceiling` other parts refer to: flops, memory, to_host, from_host."""
    device = torch.device(context.device)
    print(sys.version, torch.__version__, identity())
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "importable" if importlib.util.find_spec(name) else "absent"
        yield Figure(what=f"{name} {found}", value=float(found != "absent"), unit="")
    if device.type == "cuda":
        free, all_bytes = memory_bytes(device) or (0, 0)
        name = torch.cuda.get_device_name(device)
        yield Figure(
            what=f"{name}: memory, of which free",
            value=all_bytes / 1e9,
            unit="GB",
            ratio=free / all_bytes,
            ratio_of="all",
        )
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (128, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    rate = 2 * size**3 / seconds(context.device, lambda: left @ right, rounds=20)
    yield Figure(what=f"product of {size} x {size}, {dtype}", value=rate / 1e12, unit="TFLOP/s")
    yield Figure(what="product, FLOP/s", value=rate, unit="", ceiling="flops")
    block = (2 << 30) if device.type == "cuda" else 1 << 20
    here, there = (torch.ones(block, dtype=torch.uint8, device=device) for _ in range(2))
    rate = 2 * block / seconds(context.device, lambda: there.copy_(here), rounds=5)
    yield Figure(what="memory, read and written, B/s", value=rate, unit="", ceiling="memory")
    host = host_memory(block, device=device)
    rate = block / seconds(context.device, lambda: host.copy_(here, non_blocking=True), rounds=5)
    yield Figure(what="to page-locked host memory, B/s", value=rate, unit="", ceiling="to_host")
    rate = block / seconds(context.device, lambda: here.copy_(host, non_blocking=True), rounds=5)
    yield Figure(what="from page-locked host memory, B/s", value=rate, unit="", ceiling="from_host")
    pageable = torch.zeros(block, dtype=torch.uint8)
    rate = block / seconds(context.device, lambda: pageable.copy_(here), rounds=3)
    yield context.compared("to pageable host memory, B/s", rate, "", ceiling="to_host", rate=rate)
