"""What Sluice asks of a Ray cluster. Every function here blocks: each is called in the one thread of `RayThread`."""

import asyncio
import logging
import os
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

# Ray is an extra: without it these lines have no types, and `import ray` would name the engine's own module.
from ray import available_resources, get_runtime_context, init, kill, remote, shutdown
from ray import nodes as known_nodes
from ray.exceptions import RayError
from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from sluice.errors import ConfigError, LaunchError, Unavailable
from sluice.launch.commands import Needs
from sluice.launch.engines.ray_address import reach
from sluice.launch.engines.ray_host import Host

START = "start one with `ray start --head`, or name its head: RAY_ADDRESS=HOST:PORT"

NODE_ID = "ray.io/node-id"
"""The label that Ray gives every node."""

Result = TypeVar("Result")


class RayThread:
    """Makes calls one after another, so that what is given back was asked for before. Never keeps the process from ending."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="ray", daemon=True).start()

    async def call(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Makes a call, even where the caller is cancelled meanwhile."""
        future: Future[Result] = Future()
        self._calls.put(partial(_settle, future, function, arguments))
        return await asyncio.shield(asyncio.wrap_future(future))

    def close(self) -> None:
        """After the calls that are queued."""
        self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            call()


def _settle(future: "Future[Any]", function: Callable[..., Any], arguments: Iterable[object]) -> None:
    try:
        answer = function(*arguments)
    except Exception as error:  # noqa: BLE001 - raised where the answer is awaited
        future.set_exception(error)
    else:
        future.set_result(answer)


@dataclass(kw_only=True, slots=True, eq=False)
class Place:
    """Room on a node for one task, from when it is asked for until it is given back."""

    name: str
    """In Ray's own lists; no two of a run have one name."""
    needs: Needs
    avoid: frozenset[str] = frozenset()
    """Ids of nodes that are not to have it."""
    group: PlacementGroup | None = None
    host: Any = None
    """The handle of the actor; None until it is made."""


def join(environ: Mapping[str, str] = os.environ) -> str:
    """Makes this process a driver of the cluster that RAY_ADDRESS names, else of this machine's; returns this node's address.

    Raises ConfigError for an address that is none, LaunchError without a cluster of the same Ray and Python.
    """
    address = environ.get("RAY_ADDRESS") or "auto"
    if "://" in address:
        raise ConfigError(
            f"RAY_ADDRESS is {address}, which the engine cannot use: give the head's HOST:PORT on a machine of the cluster, "
            "or hand the run in with `sluice submit --on ray`"
        )
    if address not in ("auto", "local"):
        reach(address, variable="RAY_ADDRESS", fix=START)
    _quieten()
    try:
        init(address=address, configure_logging=False, log_to_driver=False)
    except Exception as error:
        shutdown()
        raise LaunchError(_cannot_join(address, str(error))) from error
    return nodes().get(get_runtime_context().get_node_id(), ("", {}))[0]


def leave() -> None:
    """Ends what this process still has there."""
    shutdown()


def _quieten() -> None:
    """Ray prints what becomes of any node, in dozens of lines, over the run's own view; the tasks say what matters here."""
    from ray._private import worker

    logging.getLogger("ray").setLevel(logging.ERROR)
    worker.print_to_stdstream = lambda *_, **__: None


def _cannot_join(address: str, error: str) -> str:
    """Why, in one line."""
    if "Could not find any running Ray instance" in error:
        return f"no Ray cluster runs on this machine, and RAY_ADDRESS names none; {START}"
    if "Version mismatch" in error:
        found = [
            line.split(":", 1)[1].strip()
            for line in error.splitlines()
            if line.lstrip().startswith(("Ray:", "Python:"))
        ]
        theirs, ours = (f"Ray {found[at]} with Python {found[at + 1]}" for at in (0, 2))
        return (
            f"the Ray cluster at {address} is {theirs}, `sluice up` runs {ours}; both must be the same: install "
            f"ray=={found[0]} here, or take this Python for `ray start`"
        )
    return (
        f"the Ray cluster at {address} cannot be joined: {error.splitlines()[0] if error else 'Ray does not say why'}"
    )


def nodes() -> Mapping[str, tuple[str, Mapping[str, float]]]:
    """Address and resources of each living node, by its id."""
    return {node["NodeID"]: (node["NodeManagerAddress"], node["Resources"]) for node in known_nodes() if node["Alive"]}


def draining() -> Mapping[str, float]:
    """The nodes that the head drains, by id, each with the Unix time at which it will be gone, 0 for none known.

    Raises Unavailable when the head does not answer.
    """
    # Ray's own libraries ask here, every second or more often; there is no public way, and the head publishes nothing.
    from ray._private.state import state

    try:
        found = state.get_draining_nodes()
    except RayError as error:
        raise Unavailable(f"ray: the head does not say which nodes it drains: {error}") from error
    return {node_id: gone_at_ms / 1000 for node_id, gone_at_ms in found.items()}


def grows() -> bool:
    """Whether an autoscaler may add nodes: it has told the head which."""
    # Ray's own libraries ask here; there is no public way.
    from ray._private.state import state

    return state.get_cluster_config() is not None


def free() -> Needs:
    """CPUs and GPUs that nobody has, on all nodes together."""
    resources = available_resources()
    return Needs(cpus=int(resources.get("CPU", 0)), gpus=int(resources.get("GPU", 0)))


def ask_for(place: Place) -> None:
    """Queues for room on one node. Ray's autoscaler takes it for a demand."""
    wanted = {"CPU": float(place.needs.cpus), "GPU": float(place.needs.gpus)}
    bundle = {kind: number for kind, number in wanted.items() if number}
    elsewhere = {NODE_ID: f"!in({','.join(sorted(place.avoid))})"}
    # Older Rays know no label selectors, and do without as long as there is nothing to avoid.
    only: dict[str, Any] = {"bundle_label_selector": [elsewhere]} if place.avoid else {}
    place.group = placement_group([bundle], name=place.name, **only)


def node_id_of(place: Place) -> str:
    """The node that has the room; empty while none has."""
    assert place.group is not None
    found = placement_group_table(place.group)
    return found["bundles_to_node_id"][0] if found["state"] == "CREATED" else ""


def occupy(place: Place) -> Any:
    """Makes the actor; returns its handle without waiting for it."""
    assert place.group is not None
    strategy = PlacementGroupSchedulingStrategy(place.group, placement_group_bundle_index=0)
    place.host = (
        remote(Host)
        .options(
            name=place.name,
            num_cpus=place.needs.cpus,
            num_gpus=place.needs.gpus,
            max_restarts=0,
            scheduling_strategy=strategy,
        )
        .remote()
    )
    return place.host


def give_back(place: Place) -> None:
    """Frees the room, once; whatever is there ends."""
    if place.host is not None:
        kill(place.host)
    if place.group is not None:
        remove_placement_group(place.group)
    place.host = place.group = None
