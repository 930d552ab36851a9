"""`launch`: what `sluice up` starts."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from sluice.config.schema.section import NonNegativeInt, PositiveFloat, PositiveInt, Section


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
    rollout_replicas: NonNegativeInt = Field(default=1, description="rollout services; 0: all are started by hand")
    reward_replicas: NonNegativeInt = Field(default=1, description="reward services; 0: all are started by hand")
    learner_nproc_per_node: PositiveInt = Field(default=1, description="ranks of the learner on each of its machines")
    learner_nnodes: PositiveInt = Field(
        default=1,
        description="machines of the learner, each placed by launch.engine; with `local` the others run `sluice learner-node`",
    )
    learner_rdzv_endpoint: str | None = Field(
        default=None,
        pattern=r"^.+:\d{1,5}$",
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
        default=True, description="before training: gold answers must score right, garbage wrong"
    )

    def problems(self) -> Iterator[str]:
        """Refuses several machines of the learner without an address to meet at, where nothing places them."""
        if self.learner_nnodes > 1 and self.engine == "local" and self.learner_rdzv_endpoint is None:
            yield (
                "learner_rdzv_endpoint: must be HOST:PORT of this machine while launch.learner_nnodes is "
                f"{self.learner_nnodes} and launch.engine is local, so that the other machines find it"
            )
