"""`coordinator`: admission, attempts, the queue, deadlines."""

from pydantic import Field

from sluice.config.schema.section import NonNegativeInt, PositiveFloat, PositiveInt, Section


class CoordinatorConfig(Section):
    """Admission, attempts, the queue, deadlines."""

    max_staleness: NonNegativeInt = Field(
        default=1, description="largest age in steps of any trained token; 0 is synchronous"
    )
    refill_confidence: float = Field(
        default=1.0,
        ge=0.5,
        le=1.0,
        description="how sure it must be that a group is needed before the group starts. 1: it is, whatever the verdicts on "
        "the groups ahead of it. Less: refills of rejected groups start before the verdicts, as many as the recent "
        "acceptance foretells, and what turns out one too many is dropped (surplus); data.gen_batch_size still caps the "
        "groups in flight",
    )
    straggler_deadline_s: PositiveFloat = Field(
        default=60.0, description="how long a batch waits for groups that would expire"
    )
    heartbeat_interval_s: PositiveFloat = Field(default=1.0, description="how often a service says that it is alive")
    heartbeat_timeout_s: PositiveFloat = Field(default=10.0, description="silence after which a service is lost")
    generate_timeout_s: PositiveFloat = Field(default=600.0, description="limit of one generation call")
    score_timeout_s: PositiveFloat = Field(default=120.0, description="limit of one scoring call")
    score_wait_s: PositiveFloat = Field(
        default=600.0,
        description="how long a group waits while graders push back (a full queue, a judge that is away), before it counts as "
        "failed; such tries are not among coordinator.max_attempts",
    )
    max_attempts: PositiveInt = Field(default=3, description="tries a group gets before it counts as failed")
    max_batch_deaths: NonNegativeInt = Field(
        default=3,
        description="deaths of the learner on one batch after which the batch is set aside (failed:poison) and another takes "
        "its place; 0: never. At most launch.max_restarts, or the run ends before",
    )
    no_service_timeout_s: PositiveFloat = Field(
        default=300.0,
        description="longest time without any usable rollout, reward or learner, or without a group that ends well while "
        "groups fail one after the other",
    )
    stall_warning_s: PositiveFloat = Field(
        default=60.0,
        description="time without a group that starts or ends and without a step before the log says who waits for whom; "
        "at least twice the last step's",
    )
    queue_max_bytes: PositiveInt = Field(
        default=4 << 30,
        description="accepted payloads kept in Redis; then only groups of the next batch are admitted",
    )
