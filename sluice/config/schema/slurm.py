"""`slurm`: the job that a run asks Slurm for."""

from collections.abc import Iterator

from pydantic import Field

from sluice.config.schema.section import NonNegativeInt, PositiveInt, Section

_WORD = r"^[A-Za-z0-9][A-Za-z0-9._,+-]*$"


class SlurmConfig(Section):
    """The job that `sluice submit` asks Slurm for; `sluice up` inside a job does not read this section (docs/clusters.md)."""

    partition: str | None = Field(default=None, pattern=_WORD, description="partition; default: the cluster's")
    account: str | None = Field(default=None, pattern=_WORD, description="account that the job is charged to")
    qos: str | None = Field(default=None, pattern=_WORD, description="quality of service")
    time_limit_min: PositiveInt | None = Field(
        default=None, description="minutes that the job may take; default: the partition's"
    )
    drain_s: PositiveInt = Field(
        default=60,
        le=65535,
        description="how long before the time limit the run is stopped in order, so that it can be resumed",
    )
    nodes: PositiveInt = Field(default=1, description="whole nodes of the job; `sluice up` runs on the first one")
    gpus_per_node: NonNegativeInt = Field(default=0, description="GPUs of each of these nodes")
    rollout_nodes: NonNegativeInt = Field(
        default=0,
        description="further whole nodes, for rollouts alone, as a second component of a heterogeneous job; 0: rollouts run "
        "beside the learner",
    )
    rollout_partition: str | None = Field(
        default=None, pattern=_WORD, description="partition of rollout_nodes; default: partition"
    )
    rollout_gpus_per_node: NonNegativeInt | None = Field(
        default=None, description="GPUs of each of rollout_nodes; default: gpus_per_node"
    )
    requeue: bool = Field(
        default=True, description="whether Slurm starts the job again after the loss of its first node or a preemption"
    )
    prepare: str = Field(
        default="true", min_length=1, description="a shell line that runs first in the job, such as `module load cuda`"
    )

    def problems(self) -> Iterator[str]:
        """Refuses what is said of nodes that are not asked for, and a job that would be stopped as it starts."""
        if self.time_limit_min is not None and self.drain_s >= 60 * self.time_limit_min:
            yield f"drain_s: must be below slurm.time_limit_min, which is {60 * self.time_limit_min} s, got {self.drain_s}"
        if not self.rollout_nodes:
            for key in ("rollout_partition", "rollout_gpus_per_node"):
                if (value := getattr(self, key)) is not None:
                    yield f"{key}: needs slurm.rollout_nodes above 0, got {value}; set slurm.rollout_nodes or leave {key} out"
