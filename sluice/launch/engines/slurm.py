"""Places tasks on the nodes of the Slurm job that the launcher runs in: each is an `srun` step (slurm_step.py).

 who waits        for what                              unblocked by
 `Engine.start`   CPUs and GPUs of the job's nodes      the end of another task; a node that answers again
Slurm's queue is asked once, for the whole job; inside the job this engine chooses the node, and Slurm confirms the choice and
hands out the GPUs. What the job lost with a node, the job does not get back.
"""

import asyncio
import contextlib
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sluice.errors import ConfigError, LaunchError
from sluice.launch.commands import Command, Needs
from sluice.launch.engines.slurm_job import Node, address_of, ask, choose, impossible, nodes_of, share, silent_nodes
from sluice.launch.engines.slurm_step import NoStep, Step
from sluice.process.output import opened_log

LOOK_EVERY_S = 2.0
"""How often a task that waits looks for room, and how old an answer of Slurm's controller may be: the controller serves a whole
cluster."""

BELIEVED_BUSY = 2
"""Refusals in a row of a node that has room, from which Slurm's count of a job that has lost a node is taken for wrong."""

INSIDE = """launch.engine: slurm places services on the nodes of a Slurm job, and this is none (SLURM_JOB_ID is not set); type
  sluice submit -c RECIPE --on slurm         to hand the run in, or
  salloc --nodes=2 --exclusive --no-kill sluice up -c RECIPE --on slurm"""


class SlurmEngine:
    """Engine of `--on slurm`."""

    name = "slurm"

    def __init__(self) -> None:
        self._job = ""
        self._node_timeout_s = 0.0
        self._all: Sequence[Node] = ()
        """As the job began: what a node could hold."""
        self._steps: set[Step] = set()
        self._resting: dict[str, tuple[float, str]] = {}
        """Nodes on which something went wrong: until when (monotonic seconds) they are left alone, and why."""
        self._unfit: dict[str, str] = {}
        """Nodes that lack what the run needs, and what."""
        self._busy: Counter[str] = Counter()
        """How often in a row Slurm has called a node busy that has room."""
        self._address = ""
        self._looking = asyncio.Lock()
        self._seen: tuple[float, Sequence[Node], Mapping[str, str]] = (float("-inf"), (), {})
        """When Slurm was asked last, the nodes of the job, and which of them are silent."""

    @property
    def address(self) -> str:
        """Where Slurm itself reaches the node of this process; empty on a machine that is no node, as under `salloc`."""
        return self._address

    async def open(self, *, run_dir: Path, node_timeout_s: float) -> None:
        """Engine.open."""
        if missing := [name for name in ("srun", "scontrol", "sinfo") if shutil.which(name) is None]:
            raise ConfigError(
                f"launch.engine: slurm needs Slurm's commands on the PATH, and {', '.join(missing)} is not there"
            )
        self._job, self._node_timeout_s = os.environ.get("SLURM_JOB_ID", ""), node_timeout_s
        if not self._job:
            raise ConfigError(INSIDE)
        self._all, self._seen, self._resting = await nodes_of(self._job), (float("-inf"), (), {}), {}
        if here := os.environ.get("SLURMD_NODENAME"):
            self._address = await address_of(here)
        if len(self._all) > 1 and not await _survives_nodes(self._job):
            sys.stderr.write(
                f"warning: Slurm ends job {self._job} with the first node that it loses unless the job was handed in with "
                "--no-kill, of which neither its script nor its environment has a sign\n"
            )

    async def gpus(self) -> int:
        """Engine.gpus: those of the job."""
        return sum(node.gpus for node in self._all)

    async def start(self, command: Command, *, log_path: Path, waits: Callable[[str], None]) -> Step:
        """Engine.start."""
        assert not command.said, f"{command.name} reads a secret, and srun would carry it over the network"
        role, said = command.name.partition("-")[0], ""
        while True:
            fit = [node for node in self._all if node.name not in self._unfit]
            if problem := impossible(fit, needs=command.needs, role=role):
                raise LaunchError(f"{command.name} {problem}{self._left_out()}")
            nodes, silent = await self._look()
            self._tidy()
            out = {**{name: why for name, (_, why) in self._resting.items()}, **silent, **self._unfit}
            place = choose(nodes, needs=command.needs, role=role, taken=self._taken(), out=out)
            if isinstance(place, Node):
                try:
                    return await self._begin(command, place, log_path)
                except NoStep as error:
                    self._busy[place.name] += error.busy
                    self._resting[place.name] = (time.monotonic() + error.rest_s, str(error))
                    continue
            if place != said:
                waits(place)
                said = place
            await asyncio.sleep(LOOK_EVERY_S)

    async def exclude(self, node: str, why: str) -> None:
        """Engine.exclude: for as long as this launcher runs, because a job gets no other node by that name."""
        self._unfit[node] = f"lacks something ({why})"

    async def close(self) -> None:
        """Engine.close."""
        await asyncio.gather(*(step.stop(grace_s=0) for step in self._steps))
        self._steps.clear()

    async def _begin(self, command: Command, node: Node, log_path: Path) -> Step:
        command = replace(command, needs=share(node, command.needs))
        with opened_log(command.name, log_path):
            step = Step(
                command,
                node,
                job=self._job,
                log_path=log_path,
                node_timeout_s=self._node_timeout_s,
                overlaps=self._is_miscounted(node, command.needs),
            )
        self._steps.add(step)
        try:
            await step.begin()
        except BaseException:
            self._steps.discard(step)  # nothing of it is left
            raise
        if not step.overlaps:
            self._busy.pop(node.name, None)
        return step

    def _is_miscounted(self, node: Node, needs: Needs) -> bool:
        """Whether Slurm's count of a node is to be passed over.

        Of a job that has lost a node Slurm (22.05) never counts the places of steps free that were running then: "unable to
        update job's core use information due to job resizing". The first refusal may be a step whose end Slurm has not
        heard of. GPUs whose ids this launcher does not know are left to the steps that have them.
        """
        shrunk = len(self._seen[1]) < len(self._all)
        used = self._taken().get(node.name, Needs(cpus=0))
        return shrunk and self._busy[node.name] >= BELIEVED_BUSY and (not needs.gpus or not used.gpus)

    async def _look(self) -> tuple[Sequence[Node], Mapping[str, str]]:
        """The job's nodes and those of them that are silent, LOOK_EVERY_S old at most. What Slurm does not say now it said
        before: a controller that is started again costs no task."""
        async with self._looking:
            asked_s, nodes, silent = self._seen
            if time.monotonic() - asked_s >= LOOK_EVERY_S:
                with contextlib.suppress(LaunchError):
                    nodes = await nodes_of(self._job)
                    silent = dict.fromkeys(await silent_nodes([node.name for node in nodes]), "does not answer Slurm")
                self._seen = (time.monotonic(), nodes or self._all, silent)
            return self._seen[1:]

    def _left_out(self) -> str:
        return "".join(f"; {node} {why}" for node, why in self._unfit.items())

    def _taken(self) -> Mapping[str, Needs]:
        taken: dict[str, Needs] = {}
        for step in self._steps:
            has = taken.get(step.node, Needs(cpus=0))
            taken[step.node] = Needs(cpus=has.cpus + step.needs.cpus, gpus=has.gpus + step.needs.gpus)
        return taken

    def _tidy(self) -> None:
        """Forgets steps that are gone, and has a node that has lost one left alone for a while."""
        now_s = time.monotonic()
        for step in self._steps:
            if step.lost:
                self._resting[step.node] = (now_s + self._node_timeout_s, f"rests ({step.lost})")
        self._steps = {step for step in self._steps if not step.gone}
        self._resting = {name: rest for name, rest in self._resting.items() if now_s < rest[0]}


async def _survives_nodes(job: str) -> bool:
    """Whether the job says `--no-kill` where that can be seen: its script, or the variables that stand for the flag."""
    if any(name in os.environ for name in ("SBATCH_NO_KILL", "SALLOC_NO_KILL")):
        return True
    try:
        script = await ask("scontrol", "write", "batch_script", job, "-")
    except LaunchError:
        return False  # salloc, which has no script
    flags = [line.split()[1:] for line in script.splitlines() if line.startswith("#SBATCH")]
    return any(flag in ("--no-kill", "-k") for words in flags for flag in words)
