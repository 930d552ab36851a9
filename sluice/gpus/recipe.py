"""What a recipe becomes on the GPUs that there are: the number of rollouts, who computes where, how memory is shared."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sluice.config.schema import Config
from sluice.config.schema.launch import ReplicaRange
from sluice.errors import ConfigError
from sluice.gpus.chosen import allowed
from sluice.gpus.gpu_plan import Demand, Plan, share_out
from sluice.gpus.machine import Device, Link, Machine
from sluice.sizing.config_json import Uncounted, read_shape
from sluice.sizing.learner import rank_memory
from sluice.sizing.memory_parts import gigabytes
from sluice.sizing.rollout import gpu_memory, kv_cache
from sluice.sizing.verdict import LEFT_FREE_BYTES

_WORDS = {Link.NVLINK: "NVLink", Link.SWITCH: "PCIe switch", Link.CPU: "PCIe, one CPU", Link.FAR: "PCIe, several CPUs"}


@dataclass(frozen=True, kw_only=True, slots=True)
class SharedOut:
    """A recipe with the numbers that its GPUs decide."""

    config: Config
    """`launch.rollout_replicas` is a number; the memory of a shared GPU is in `rollout`."""
    machine: Machine = field(default_factory=Machine)
    plan: Plan | None = None
    """Who gets which device of the launcher's machine; None: everything computes on CPUs, or an engine chooses the devices."""
    placed: bool = False
    """Whether an engine gives out the GPUs of a cluster, by number."""
    lines: tuple[str, ...] = ()
    """The plan for people."""


def on_this_machine(
    config: Config, machine: Machine, *, environ: Mapping[str, str], learner: bool = True, rollouts: bool = True
) -> SharedOut:
    """Shares out `machine`'s GPUs among the roles that start. Raises ConfigError where they do not suffice."""
    machine = allowed(machine, gpus=config.launch.gpus, environ=environ)
    if not machine.devices:
        return SharedOut(config=with_rollouts(config, config.launch.rollouts), machine=machine)
    return share(config, machine, ranks=config.launch.learner_nproc_per_node if learner else 0, rollouts=rollouts)


def share(config: Config, machine: Machine, *, ranks: int, rollouts: bool = True) -> SharedOut:
    """Shares out `machine`'s devices, of which there is at least one, among the roles that start, with `ranks` ranks
    here.
    """
    demand = Demand(ranks=ranks, rollouts=_asked_rollouts(config) if rollouts else 0, block=config.gpus_a_rollout)
    plan = share_out(machine, demand)
    config = with_rollouts(config, len(plan.rollouts) if rollouts else config.launch.rollouts)
    lines = [_heading(machine), *_services(machine, plan)]
    if plan.shared:
        config, more = _split(config, plan)
        lines += more
    return SharedOut(config=config, machine=machine, plan=plan, lines=tuple(lines))


def on_cluster(config: Config, count: int) -> SharedOut:
    """What the services of a cluster with `count` GPUs need; one with too few may still grow, so nothing is refused."""
    usable = 0 if config.launch.gpus == "none" else count
    ranks, block = config.learner_ranks, config.gpus_a_rollout
    rollouts = _asked_rollouts(config)
    if rollouts == "auto":
        rollouts = max(1, (usable - ranks) // block)
    config = with_rollouts(config, rollouts)
    machine = Machine(has_gpus=count > 0)
    if not usable:
        none = (
            f"GPUs of the cluster: none now, so everything computes on CPUs; start when {config.launch.engine} has some"
        )
        return SharedOut(config=config, machine=machine, lines=() if config.launch.gpus == "none" else (none,))
    lines = [f"GPUs of the cluster: {count}; {config.launch.engine} chooses them"]
    lines += [f"  learner: {config.launch.learner_nproc_per_node} on each of {config.launch.learner_nnodes} machines"]
    lines += [f"  {rollouts} rollouts: {block} each", "  rewards: none"]
    if (needed := ranks + rollouts * block) > usable:
        lines += [
            f"note: {ranks} for the learner + {rollouts} x {block} for rollouts = {needed}: the rest waits for a place"
        ]
    return SharedOut(config=config, machine=machine, placed=True, lines=tuple(lines))


def with_rollouts(config: Config, replicas: int) -> Config:
    """The recipe with `launch.rollout_replicas` as a number; a range stays what it is."""
    if isinstance(config.launch.rollout_replicas, ReplicaRange):
        return config
    return _with(config, "launch", rollout_replicas=replicas)


def _asked_rollouts(config: Config) -> int | Literal["auto"]:
    """Rollouts at the start."""
    return "auto" if config.launch.rollout_replicas == "auto" else config.launch.rollouts


def _with(config: Config, section: str, **values: Any) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def _heading(machine: Machine) -> str:
    kinds: dict[tuple[str, int], int] = {}
    for device in machine.devices:
        kind = (device.name or "device", device.memory_bytes)
        kinds[kind] = kinds.get(kind, 0) + 1
    each = (f"{n} x {name}" + (f" ({gigabytes(size)})" if size else "") for (name, size), n in kinds.items())
    return f"GPUs: {', '.join(each)}{f'; {machine.hidden}' if machine.hidden else ''}"


def _services(machine: Machine, plan: Plan) -> Iterator[str]:
    rows = [("learner", plan.learner)] if plan.learner else []
    rows += [(f"rollout-{index}", block) for index, block in enumerate(plan.rollouts)]
    names = {name: ",".join(device.id for device in devices) for name, devices in rows}
    wide = max((len(text) for text in names.values()), default=0)
    for name, devices in rows:
        yield f"  {name:<10} {names[name]:<{wide}}  {_link(machine, devices)}".rstrip()
    yield f"  {'rewards':<10} none"
    if plan.free:
        yield f"  {'free':<10} {','.join(device.id for device in plan.free)}"


def _link(machine: Machine, devices: tuple[Device, ...]) -> str:
    """The slowest link among the devices; empty where there is no pair, or links are not known."""
    if len(devices) < 2 or not machine.links:
        return ""
    return _WORDS[max(machine.link_between(one, other) for one in devices for other in devices if one != other)]


def _split(config: Config, plan: Plan) -> tuple[Config, list[str]]:
    """The memory of GPUs that learner and rollouts share: the recipe in which it stands, and what to tell."""
    fraction, memory = config.launch.shared_gpu_fraction, min(device.memory_bytes for device in plan.learner)
    has = round(fraction * memory)
    who = f"shared: a rollout has {fraction:.0%} of a GPU (launch.shared_gpu_fraction), {gigabytes(has)}"
    if (fixed := config.rollout.kv_cache_bytes) is not None:
        return config, [f"shared: a rollout has what it needs and rollout.kv_cache_bytes, {gigabytes(fixed)}"]
    if config.rollout.engine != "vllm":
        return config, ["shared: the transformers engine keeps to no limit; learner and rollout take what they need"]
    try:
        shape = read_shape(config.model.path)
    except Uncounted as reason:
        config = _with(config, "rollout", gpu_memory_utilization=fraction)
        return config, [f"{who} as rollout.gpu_memory_utilization: memory is not counted ({reason})"]
    if not memory:
        return _with(config, "rollout", gpu_memory_utilization=fraction), [who]
    counted = gpu_memory(shape, config)
    room = has - counted.total_bytes - LEFT_FREE_BYTES
    if room < (least := kv_cache(shape, config, gpu_bytes=None).sequence_bytes):
        raise ConfigError(
            f"launch.shared_gpu_fraction: {fraction:g} of {gigabytes(memory)} must hold {gigabytes(counted.total_bytes)} of "
            f"weights and one step, {gigabytes(LEFT_FREE_BYTES)} for CUDA itself and a sequence of {gigabytes(least)}, got "
            f"{gigabytes(has)}; raise it, or give the rollout a GPU of its own"
        )
    config = _with(config, "rollout", kv_cache_bytes=room)
    needs, rest = rank_memory(shape, config).total_bytes, memory - has
    lines = [
        f"{who}: weights and one step {gigabytes(counted.total_bytes)}, CUDA itself {gigabytes(LEFT_FREE_BYTES)}, KV cache "
        f"{gigabytes(room)} (rollout.kv_cache_bytes)"
    ]
    lines += [f"shared: a rank of the learner needs {gigabytes(needs)}, and {gigabytes(rest)} are left"]
    lines += ["note: the learner may run out of memory; lower launch.shared_gpu_fraction"] if needs > rest else []
    return config, lines
