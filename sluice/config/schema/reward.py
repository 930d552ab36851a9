"""`reward`: grading."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from sluice.config.schema.section import NonNegativeFloat, PathText, PositiveFloat, PositiveInt, Section


class OverlongBufferConfig(Section):
    """Soft overlong punishment (DAPO eq. 13)."""

    enable: bool = Field(default=False, description="punish completions that come near max_response_length")
    len: PositiveInt = Field(default=4096, description="tokens before max_response_length in which the penalty grows")
    penalty_factor: NonNegativeFloat = Field(
        default=1.0, description="punishment at max_response_length, subtracted from the raw score"
    )


class GraderConfig(Section):
    """One grader of a route."""

    grader: PathText = Field(
        min_length=1, description="built-in grader, module, `file.py:function` or `module:function`"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="the grader's own settings")
    weight: float = Field(default=1.0, description="factor of its score in the sum")
    name: str = Field(default="", description="what its score is called in metrics; default: the grader")
    network: bool = Field(default=False, description="whether it may use the network; `judge` always may")


def _as_graders(route: Any) -> Any:
    """A route's short forms, a name or one section, as the list that they stand for."""
    graders = route if isinstance(route, list) else [route]
    return [{"grader": grader} if isinstance(grader, str) else grader for grader in graders]


GraderList = Annotated[list[GraderConfig], BeforeValidator(_as_graders), Field(min_length=1)]


class RewardConfig(Section):
    """Grading."""

    overlong_buffer: OverlongBufferConfig = OverlongBufferConfig()
    workers: int = Field(default=2, gt=0, le=4096, description="grader processes of one reward service")
    timeout_s: PositiveFloat = Field(
        default=10.0, description="wall-clock limit of one grading; then the worker is killed"
    )
    max_answer_chars: PositiveInt = Field(
        default=400_000, description="a longer completion is not graded: its status is `error`, not a zero"
    )
    worker_memory_bytes: PositiveInt = Field(default=2 << 30, description="address-space limit of a grader process")
    worker_file_bytes: PositiveInt = Field(
        default=256 << 20, description="largest file that a grader process can write"
    )
    worker_max_processes: int = Field(
        default=256, ge=16, description="processes and threads of a grader, where the machine permits the limit"
    )
    allow_unsandboxed: bool = Field(
        default=False,
        description="let the `code` grader run programs where the machine cannot keep them from the files, sockets and "
        "processes of the service's user (docs/security.md)",
    )
    environment: list[str] = Field(
        default_factory=list,
        description="environment variables of the reward service that graders see besides the usual ones (docs/rewards.md)",
    )
    recycle_after: PositiveInt = Field(default=10_000, description="gradings after which a grader process is replaced")
    warn_ungraded_fraction: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="share of timeouts or errors among the last 1000 samples from which the log warns",
    )
    routes: dict[str, GraderList] = Field(
        default_factory=dict,
        description="data_source (or a prefix ending in *) -> grader, or {grader, settings, weight, name}, or a list of "
        "graders, whose first decides what is right; goes before the built-in table (docs/rewards.md)",
    )
