"""The devices that NVML tells are those that torch computes on."""

import os

import pytest
import torch

from sluice.accelerator import identity
from sluice.gpus.chosen import allowed
from sluice.gpus.nvml import find_machine, torch_has_cuda

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]


def test_the_driver_and_torch_know_the_same_devices() -> None:
    assert torch_has_cuda()
    machine = allowed(find_machine(), gpus="auto", environ=os.environ)
    assert len(machine.devices) == torch.cuda.device_count()
    assert identity().removeprefix("GPU-") in {device.uuid.partition("-")[2] for device in machine.devices}
    assert all(device.memory_bytes > 0 and device.name for device in machine.devices)
