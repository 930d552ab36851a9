"""`algorithm.rollout_correction`: stale tokens, beyond the ratio's clip."""

from typing import Literal

from pydantic import Field

from sluice.config.schema.section import NonNegativeFloat, PositiveFloat, Section


class RolloutCorrectionConfig(Section):
    """What is done about tokens that another policy sampled, beyond the ratio's clip; verl's names."""

    rollout_is: Literal["none", "token", "sequence"] = Field(
        default="none",
        description="truncated importance weight, by token or sequence (TIS): proximal / rollout with proximal: recompute, "
        "learner / rollout with loss_mode: reinforce; needs one of the two",
    )
    rollout_is_threshold: PositiveFloat = Field(default=2.0, description="largest importance weight")
    rollout_rs: Literal["none", "token", "sequence", "geometric"] = Field(
        default="none",
        description="what a ratio to the rollout outside the bounds masks: the token (IcePop), or the token's whole "
        "sequence by the product or the geometric mean of its ratios (MIS)",
    )
    rollout_rs_threshold: float = Field(default=2.0, ge=1, description="upper bound of that ratio")
    rollout_rs_threshold_lower: float | None = Field(
        default=None, gt=0, le=1, description="lower bound; default 1 / rollout_rs_threshold"
    )
    opsm_delta: NonNegativeFloat | None = Field(
        default=None,
        description="masks a sequence with a negative advantage once the learner finds it less likely than the rollout did by "
        "more than so many nats a token on average (OPSM, arXiv:2512.02556); null switches it off",
    )
