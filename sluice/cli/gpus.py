"""Who computes where, for `sluice config check` and `sluice up --dry-run`."""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sluice.gpus.recipe import SharedOut


_OF_ONE_MACHINE = 16
"""Chosen: with more there are several machines, and numbers of devices mean nothing."""


def for_check(config: Any, *, gpus: int | None, gpu_bytes: int | None) -> "tuple[SharedOut, list[str]]":
    """The recipe on `gpus` GPUs, or on those of this machine, and what is refused, a line each.

    This machine need not be the one that the recipe is for, so too few GPUs here are reported and not refused.
    """
    from sluice.errors import ConfigError
    from sluice.gpus.gpu_plan import Demand
    from sluice.gpus.machine import imagined
    from sluice.gpus.recipe import SharedOut, share, with_rollouts

    plain = SharedOut(config=with_rollouts(config, config.launch.rollouts))
    if gpus is None:
        try:
            return here(config), []
        except ConfigError as error:
            return SharedOut(config=plain.config, lines=(f"note: `sluice up` is refused on this machine: {error}",)), []
    try:
        out = share(config, imagined(gpus, memory_bytes=gpu_bytes or 0), ranks=config.learner_ranks)
    except ConfigError as error:
        return plain, [str(error)]
    if config.launch.learner_nnodes > 1 or gpus > _OF_ONE_MACHINE:
        demand = Demand(ranks=config.learner_ranks, rollouts=out.config.launch.rollouts, block=config.gpus_a_rollout)
        out = replace(out, lines=(f"GPUs: {demand.text} of {gpus}",))
    return out, []


def here(config: Any) -> "SharedOut":
    """The recipe on this machine's GPUs. Raises ConfigError where they do not suffice."""
    from sluice.gpus.nvml import find_machine
    from sluice.gpus.recipe import SharedOut, on_this_machine, with_rollouts
    from sluice.interfaces import with_addresses
    from sluice.nccl import settings_to_mend

    if config.launch.engine != "local":
        launch = config.launch
        line = f"GPUs: {launch.engine} gives the learner {launch.learner_nproc_per_node} on each of its machines, each rollout "
        line += f"{config.gpus_a_rollout}, rewards none, where the cluster has any (launch.gpus: {launch.gpus})"
        return SharedOut(config=with_rollouts(config, config.launch.rollouts), lines=(line,))
    out = on_this_machine(config, find_machine(), environ=os.environ)
    if out.lines:
        notes = (f"note: {line}" for line in settings_to_mend(os.environ, interfaces=with_addresses()))
        return replace(out, lines=(*out.lines, *notes))
    why = out.machine.hidden or "none found"
    return SharedOut(config=out.config, lines=(f"GPUs: {why}; learner and rollouts compute on the CPU",))


def print_gpus(config: Any) -> None:
    """Prints a line a service. Raises ConfigError where the GPUs do not suffice."""
    print(*here(config).lines, "", sep="\n")
