"""`launch`: what `sluice up` starts."""

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from sluice.config.schema.section import (
    MOST_PORT,
    MOST_REPLICAS,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Replicas,
    Section,
)

_GPU = re.compile(r"^(\d{1,4}|(GPU|MIG)-[0-9A-Za-z/-]{1,120})$", re.ASCII)


class ReplicaRange(Section):
    """A number of services that follows the load."""

    min: int = Field(gt=0, le=MOST_REPLICAS)
    max: int = Field(gt=0, le=MOST_REPLICAS)

    def problems(self) -> Iterator[str]:
        """Refuses a range that holds no number."""
        if self.min > self.max:
            yield f"min: must be <= max ({self.max}), got {self.min}"


class LaunchConfig(Section):
    """What `sluice up` starts, and where."""

    engine: Literal["local", "ray", "slurm"] = Field(
        default="local",
        description="what places rewards, rollouts and the learner: this machine, a Ray cluster or the nodes of a Slurm job; "
        "Redis and the coordinator stay with `sluice up`",
    )
    place_timeout_s: PositiveFloat = Field(
        default=1800.0, description="limit for a service to wait for a place, with room for what it needs"
    )
    node_timeout_s: PositiveFloat = Field(
        default=30.0, description="a node that is silent for this long is lost; its services are placed elsewhere"
    )
    gpus: Literal["auto", "none"] | list[Annotated[int, Field(ge=0, strict=True)] | str] = Field(
        default="auto",
        description="GPUs that the run may use: all that there are (and CUDA_VISIBLE_DEVICES leaves), none, or those listed: "
        "numbers as `nvidia-smi -L` prints them, UUIDs, names of MIG slices. Shared out by `sluice up`: ranks of the learner, "
        "then a block of rollout.tensor_parallel_size for each rollout; rewards get none",
    )
    shared_gpu_fraction: float = Field(
        default=0.4,
        gt=0,
        lt=1,
        description="share of a GPU's memory that a rollout has where the learner computes on the same GPU, which is so where "
        "there are only as many as the learner has ranks; rollout.kv_cache_bytes follows from it unless it is set",
    )
    rollout_replicas: Replicas | Literal["auto"] | ReplicaRange = Field(
        default=1,
        description="rollout services; 0: all are started by hand; auto: as many as there are GPUs for beside the learner, "
        "one without GPUs; {min: 1, max: 8}, min <= max: more while the learner idles, fewer while rollouts do",
    )
    reward_replicas: Replicas = Field(default=1, description="reward services; 0: all are started by hand")
    learner_nproc_per_node: PositiveInt = Field(default=1, description="ranks of the learner on each of its machines")
    learner_nnodes: PositiveInt = Field(
        default=1,
        description="machines of the learner, each placed by launch.engine; with `local` the others run `sluice learner-node`",
    )
    learner_rdzv_endpoint: str | None = Field(
        default=None,
        pattern=r"^.+:[0-9]{1,5}$",
        description="HOST:PORT of this machine where the learner's machines meet; needed when there are several and "
        "launch.engine is local; elsewhere they find each other",
    )
    max_restarts: NonNegativeInt = Field(
        default=3, description="restarts of one service within restart_window_s before the run is stopped"
    )
    restart_window_s: PositiveFloat = Field(default=3600.0, description="time after which a restart no longer counts")
    frozen_timeout_s: PositiveFloat = Field(
        default=30.0,
        description="a process that answered once and then is silent for this long is killed and started again",
    )
    ready_timeout_s: PositiveFloat = Field(default=300.0, description="limit for a service to become ready")
    grace_s: PositiveFloat = Field(default=15.0, description="time between SIGTERM and SIGKILL")
    check_reward: bool = Field(
        default=True,
        description="before training: gold answers must score right, garbage wrong, environments must play a scripted episode",
    )

    @property
    def rollouts(self) -> int:
        """Rollouts at the start; 1 for auto, which is a number only where the GPUs are known (sluice/gpus/recipe.py)."""
        if isinstance(self.rollout_replicas, ReplicaRange):
            return self.rollout_replicas.min
        return 1 if self.rollout_replicas == "auto" else self.rollout_replicas

    @property
    def most_rollouts(self) -> int:
        """Rollouts that there may be without a `sluice scale`."""
        return self.rollout_replicas.max if isinstance(self.rollout_replicas, ReplicaRange) else self.rollouts

    def problems(self) -> Iterator[str]:
        """Refuses several machines of the learner without an address to meet at, where nothing places them; and lists of GPUs
        that name none."""
        yield from self._problems_of_gpus()
        if self.learner_rdzv_endpoint is not None and int(self.learner_rdzv_endpoint.rpartition(":")[2]) > MOST_PORT:
            yield f"learner_rdzv_endpoint: must have a port up to {MOST_PORT}, got {self.learner_rdzv_endpoint!r:.80}"
        if self.learner_nnodes > 1 and self.engine == "local" and self.learner_rdzv_endpoint is None:
            yield (
                "learner_rdzv_endpoint: must be HOST:PORT of this machine while launch.learner_nnodes is "
                f"{self.learner_nnodes} and launch.engine is local, so that the other machines find it"
            )

    def _problems_of_gpus(self) -> Iterator[str]:
        if isinstance(self.gpus, str):
            return
        names = [str(name) for name in self.gpus]
        if not names or len(names) > len(set(names)):
            yield f"gpus: must name each GPU once, and at least one, got {_short(names)}; without any write none"
        elif wrong := [name for name in names if not _GPU.match(name)]:
            yield (
                "gpus: must hold numbers as `nvidia-smi -L` prints them, UUIDs (GPU-...) or names of slices (MIG-...), got "
                f"{wrong[0]!r:.60}"
            )
        elif self.engine != "local":
            yield (
                f"gpus: must be auto or none with launch.engine: {self.engine}, which chooses among the GPUs of its nodes, "
                f"got {_short(names)}"
            )


def _short(names: list[str]) -> str:
    return f"{names!r:.60}"
