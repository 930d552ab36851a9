"""What Slurm's commands say about the job that the launcher runs in: its nodes, what they have, which of them answer.

The parsing and the choice of a node are plain functions over text and dataclasses; `ask` alone starts a process.
"""

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sluice.errors import LaunchError
from sluice.launch.commands import Needs

ASK_TIMEOUT_S = 20.0
"""Above the 10 s that Slurm's commands wait by themselves for a controller that is busy."""

_SHARES = re.compile(r"\bNodes=(\S+) CPU_IDs=(\S+) Mem=\d+ GRES=(\S*)")
_GPUS = re.compile(r"\bgpu:(?:[^:,()]+:)?(\d+)")
_SHOWN = 8
_SILENT_STATES = ("down", "fail", "drained", "unknown", "power", "reboot", "not_responding")


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """What a job has of a node."""

    name: str
    component: int | None
    """Of a heterogeneous job, from 0; else None."""
    cpus: int
    gpus: int


async def nodes_of(job: str) -> Sequence[Node]:
    """The nodes that the job still has. Raises LaunchError when Slurm does not answer or the job is over."""
    nodes = list[Node]()
    for text in (await ask("scontrol", "show", "job", "--details", "--oneliner", job)).splitlines():
        if "JobState=RUNNING" not in text:
            state = re.search(r"JobState=(\S+)", text)
            raise LaunchError(
                f"Slurm's job {job} is {state[1] if state else 'unknown'}, not RUNNING: nothing can start in it"
            )
        for names, cpus, gpus in shares(text):
            for name in (await ask("scontrol", "show", "hostnames", names)).split():
                nodes.append(Node(name=name, component=component_of(text), cpus=cpus, gpus=gpus))
    return nodes


def component_of(job: str) -> int | None:
    """Which component of a heterogeneous job a line of `scontrol show job --oneliner` is about."""
    found = re.search(r"\bHetJobOffset=(\d+)", job)
    return int(found[1]) if found else None


def shares(job: str) -> Sequence[tuple[str, int, int]]:
    """From the output of `scontrol show job --details --oneliner`: nodes, in Slurm's short form, with CPUs and GPUs of
    each.
    """
    return [(names, _count(cpus), sum(map(int, _GPUS.findall(gres)))) for names, cpus, gres in _SHARES.findall(job)]


async def silent_nodes(names: Iterable[str]) -> Collection[str]:
    """The nodes that Slurm takes for dead, or that do not answer Slurm's controller."""
    return silent(await ask("sinfo", "--noheader", "--Node", "--nodes", ",".join(names), "--format", "%N %T"))


def silent(states: str) -> Collection[str]:
    """The nodes that do not answer, from lines such as `n1 allocated*`, where the star says so."""
    return {
        name
        for name, state in (line.split(maxsplit=1) for line in states.splitlines() if " " in line)
        if state.rstrip().endswith("*") or state.lower().startswith(_SILENT_STATES)
    }


async def address_of(node: str) -> str:
    """Where Slurm reaches a node; empty for a name that this machine takes for its own loopback."""
    found = re.search(r"\bNodeAddr=(\S+)", await ask("scontrol", "show", "node", "--oneliner", node))
    if found is None:
        return ""
    try:
        return str(ipaddress.ip_address(found[1]))
    except ValueError:
        pass
    with contextlib.suppress(OSError):
        for *_, place in await asyncio.get_running_loop().getaddrinfo(found[1], None, type=socket.SOCK_STREAM):
            if not ipaddress.ip_address(str(place[0]).partition("%")[0]).is_loopback:
                return str(place[0])
    return ""


def choose(
    nodes: Sequence[Node], *, needs: Needs, role: str, taken: Mapping[str, Needs], out: Mapping[str, str]
) -> Node | str:
    """A node with room, or why there is none. `taken`: of each node by tasks that run; `out`: nodes to leave alone, and why.

    GPUs are packed, so that whole nodes stay free for a task that needs many; tasks without are spread over the nodes. In a
    heterogeneous job the learner runs in the first component and rollouts in the others.
    """
    fitting, reasons = list[tuple[tuple[int, int], Node]](), list[str]()
    for node in nodes:
        used = taken.get(node.name, Needs(cpus=0))
        cpus, gpus = node.cpus - used.cpus, node.gpus - used.gpus
        if not serves(node, nodes, role):
            continue
        if node.name in out:
            reasons.append(f"{node.name} {out[node.name]}")
        elif cpus >= share(node, needs).cpus and gpus >= needs.gpus:
            fitting.append(((gpus if needs.gpus else 0, -cpus), node))
        else:
            reasons.append(f"{node.name} has {cpus} of {node.cpus} CPUs and {gpus} of {node.gpus} GPUs free")
    if fitting:
        return min(fitting, key=lambda each: each[0])[1]
    return f"no node of the job has {wanted(needs)} free: {_some(reasons) or 'the job has lost all its nodes'}"


def share(node: Node, needs: Needs) -> Needs:
    """What a task takes of a node: with its GPUs comes its part of half of the CPUs, which feed the GPUs; the other half is for
    tasks without. Slurm may keep a step to the CPUs that it asked for."""
    with_gpus = node.cpus * needs.gpus // (2 * node.gpus) if node.gpus else 0
    return Needs(cpus=max(needs.cpus, with_gpus), gpus=needs.gpus)


def serves(node: Node, nodes: Sequence[Node], role: str) -> bool:
    """Whether services of `role` may run on the node."""
    if node.component is None or len({each.component for each in nodes}) == 1:
        return True
    return {"learner": node.component == 0, "rollout": node.component > 0}.get(role, True)


def impossible(nodes: Sequence[Node], *, needs: Needs, role: str) -> str:
    """Why no node could hold a task even if it were empty; empty if one could."""
    fits = [node for node in nodes if serves(node, nodes, role)]
    if any(node.cpus >= share(node, needs).cpus and node.gpus >= needs.gpus for node in fits):
        return ""
    has = _some([f"{node.name} {node.cpus} CPUs and {node.gpus} GPUs" for node in fits])
    return f"needs {wanted(needs)} on one node, and the job has {has or 'no node for it'}; ask Slurm for larger nodes"


def wanted(needs: Needs) -> str:
    """`1 GPU and 2 CPUs`."""
    parts = [
        f"{number} {what}{'s' * (number != 1)}" for number, what in ((needs.gpus, "GPU"), (needs.cpus, "CPU")) if number
    ]
    return " and ".join(parts) or "room"


async def ask(*command: str) -> str:
    """What one of Slurm's commands prints. Raises LaunchError with the command's own words, and when it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if not name.startswith(("SINFO_", "SQUEUE_"))},
    )
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            said, complained = await process.communicate()
    except TimeoutError:
        raise LaunchError(
            f"`{' '.join(command)}` has not answered for {ASK_TIMEOUT_S:.0f} s: is slurmctld alive?"
        ) from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
            await process.wait()
    if process.returncode:
        words = complained.decode(errors="replace").strip().splitlines()
        raise LaunchError(f"`{' '.join(command)}` failed: {words[-1] if words else f'code {process.returncode}'}")
    return said.decode(errors="replace")


def _some(parts: Sequence[str]) -> str:
    """A line that stays readable for a job of a thousand nodes."""
    more = [f"{len(parts) - _SHOWN} nodes more"] if len(parts) > _SHOWN else []
    return ", ".join([*parts[:_SHOWN], *more])


def _count(ids: str) -> int:
    """How many CPUs `0-3,8` are."""
    ends = [part.split("-") for part in ids.split(",")]
    return sum(int(end[-1]) - int(end[0]) + 1 for end in ends)
