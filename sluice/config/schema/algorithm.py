"""`algorithm`: DAPO's settings, and the settings that depart from DAPO."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from sluice.config.schema.section import NonNegativeFloat, PositiveFloat, Section


class FilterGroupsConfig(Section):
    """Dynamic sampling (DAPO eq. 11)."""

    enable: bool = Field(
        default=True, description="drop groups whose samples all score the same; false trains every group"
    )
    metric: Literal["acc", "score", "seq_reward", "seq_final_reward"] = Field(
        default="acc",
        description="what has to vary within a group: accuracy, raw score, or shaped reward (the two `seq_`)",
    )
    max_num_gen_batches: int = Field(
        default=0, description="generation batches without a full batch before the run stops; <= 0: never"
    )
    on_starvation: Literal["stop", "wait", "train_partial"] = Field(
        default="stop",
        description="what happens after max_num_gen_batches: the run stops, warns and goes on, or trains the groups that it "
        "has (a smaller batch is not exact DAPO)",
    )

    def problems(self) -> Iterator[str]:
        """Refuses partial batches where no setting ever asks for a partial batch."""
        if self.on_starvation == "train_partial" and self.max_num_gen_batches < 1:
            yield (
                "on_starvation: train_partial needs algorithm.filter_groups.max_num_gen_batches >= 1, "
                f"got {self.max_num_gen_batches}; nothing else says when a batch has waited long enough"
            )


class RolloutCorrectionConfig(Section):
    """What is done about tokens that another policy sampled, beyond the ratio's clip; verl's names."""

    rollout_is: Literal["none", "token", "sequence"] = Field(
        default="none",
        description="truncated importance weight proximal / rollout, by token or sequence (TIS); needs proximal: recompute",
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


class AlgorithmConfig(Section):
    """DAPO."""

    loss_mode: Literal["vanilla", "gspo", "cispo"] = Field(
        default="vanilla",
        description="vanilla: DAPO's clipped token ratio; gspo: one ratio a sequence (arXiv:2507.18071); cispo: clipped "
        "ratio as a constant weight (arXiv:2506.13585)",
    )
    proximal: Literal["rollout", "recompute"] = Field(
        default="rollout",
        description="denominator of the ratio: the rollout's probabilities, or those of the step's first weights "
        "(decoupled PPO, arXiv:2110.00641)",
    )
    rollout_correction: RolloutCorrectionConfig = RolloutCorrectionConfig()

    clip_ratio_low: float = Field(default=0.2, ge=0, lt=1, description="eps_low of eq. 10")
    clip_ratio_high: NonNegativeFloat = Field(default=0.28, description="eps_high of eq. 10 (clip-higher)")
    clip_ratio_c: float | None = Field(
        default=10.0, gt=1, description="dual clip for negative advantages; null switches it off"
    )
    loss_agg_mode: Literal["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"] = (
        Field(default="token-mean", description="how token losses become one loss (eq. 12); DAPO's is token-mean")
    )
    loss_scale_factor: PositiveFloat | None = Field(
        default=None, description="divisor of seq-mean-token-sum-norm; default data.max_response_length"
    )
    norm_adv_by_std_in_grpo: bool = Field(default=True, description="divide advantages by the group's std (eq. 9)")
    filter_groups: FilterGroupsConfig = FilterGroupsConfig()
    min_group_size: int = Field(
        default=0,
        ge=0,
        description="train a group of which at least so many samples could be graded, without its other samples; "
        "0: a group with a sample that could not be graded is dropped (a smaller group is not exact DAPO)",
    )
    overlong_filtering: bool = Field(default=False, description="mask truncated samples in the loss")
    use_kl_loss: Literal[False] = Field(default=False, description="DAPO has no KL term; anything else is refused")
    use_kl_in_reward: Literal[False] = Field(default=False, description="DAPO has no KL term; anything else is refused")
    kl_loss_coef: Literal[0] = Field(default=0, description="DAPO has no KL term; anything else is refused")

    def problems(self) -> Iterator[str]:
        """Refuses a combination that would count the importance weight twice."""
        if self.rollout_correction.rollout_is != "none" and self.proximal == "rollout":
            yield (
                "rollout_correction.rollout_is: needs algorithm.proximal: recompute; with proximal: rollout the "
                "clipped ratio is the importance weight already"
            )
