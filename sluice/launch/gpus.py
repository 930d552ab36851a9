"""The GPUs of a run while it runs: what each service gets, what `scale` may still take."""

import asyncio
import os

from sluice.config.schema import Config
from sluice.errors import LaunchError
from sluice.gpus.chosen import VARIABLE
from sluice.gpus.gpu_plan import blocks
from sluice.gpus.machine import Device
from sluice.gpus.nvml import find_machine
from sluice.gpus.recipe import SharedOut, on_cluster, on_this_machine
from sluice.launch.commands import GpuShare
from sluice.launch.engines.port import Engine


async def shared_out(config: Config, engine: Engine, *, learner: bool, rollouts: bool) -> SharedOut:
    """The recipe on the GPUs of this machine, or of an opened engine's cluster. Raises ConfigError."""
    count = await engine.gpus()
    if count is not None:
        return on_cluster(config, count)
    machine = await asyncio.to_thread(find_machine)
    return on_this_machine(config, machine, environ=os.environ, learner=learner, rollouts=rollouts)


class Gpus:
    """Who has which device. A service that is started again has the same ones."""

    def __init__(self, out: SharedOut) -> None:
        self._out = out
        plan = out.plan
        self._held: dict[str, tuple[Device, ...]] = {} if plan is None else {"learner": plan.learner}
        self._held |= {} if plan is None else {f"rollout-{i}": block for i, block in enumerate(plan.rollouts)}
        self._free = [] if plan is None else list(plan.free)

    @property
    def sharing(self) -> frozenset[str]:
        """The rollouts that compute on the learner's devices."""
        shared = self._out.plan is not None and self._out.plan.shared
        return frozenset(self._held) - {"learner"} if shared else frozenset()

    def share(self, role: str, name: str) -> GpuShare:
        """What a service gets. Raises LaunchError where a further rollout finds too few free devices."""
        config, nothing = self._out.config, GpuShare(environ={VARIABLE: ""} if self._out.machine.has_gpus else {})
        counts = {"learner": config.launch.learner_nproc_per_node, "rollout": config.gpus_a_rollout}
        if role not in counts:
            return nothing
        if self._out.placed:
            return GpuShare(count=counts[role])
        if self._out.plan is None:
            return nothing
        if name not in self._held:
            self._held[name] = self._block(name)
        devices = [device.id for device in self._held[name]]
        environ = {VARIABLE: ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
        return GpuShare(count=len(devices), environ=environ)

    def give_back(self, name: str) -> None:
        """Frees the devices of a service that has ended for good."""
        freed = {*self._held.pop(name, ()), *self._free}
        self._free = [device for device in self._out.machine.devices if device in freed]

    def _block(self, name: str) -> tuple[Device, ...]:
        size, machine = self._out.config.gpus_a_rollout, self._out.machine
        if found := blocks(machine, self._free, size=size, most=1):
            self._free = [device for device in self._free if device not in found[0]]
            return found[0]
        free = ", ".join(device.id for device in self._free) or "none"
        raise LaunchError(
            f"{name} is not started: a rollout needs {size} of the {len(machine.devices)} GPUs, and free are: {free}; end a "
            "rollout, or start this one on another machine"
        )
