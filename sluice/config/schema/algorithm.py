"""`algorithm`: DAPO's settings, and the settings that depart from DAPO."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from sluice.config.schema.rollout_correction import RolloutCorrectionConfig
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


LossMode = Literal["vanilla", "gspo", "cispo", "dppo_tv", "dppo_kl", "ipo", "sapo", "reinforce"]
"""verl's names, but for `ipo` (prime-rl's) and `reinforce` (verl: `rollout_correction.loss_type` in bypass mode)."""

_AROUND_ROLLOUT = ("dppo_tv", "dppo_kl", "ipo", "reinforce")
"""Losses that know two policies, the learner and the one that sampled."""

_RATIO_OF = {
    "dppo_tv": "truncated ratio",
    "dppo_kl": "truncated ratio",
    "ipo": "truncated ratio",
    "sapo": "gated ratio",
}
"""What the loss calls the ratio that carries its importance weight."""


class AlgorithmConfig(Section):
    """DAPO."""

    loss_mode: LossMode = Field(
        default="vanilla",
        description="vanilla: DAPO's clipped token ratio; gspo: one ratio a sequence (arXiv:2507.18071); cispo: clipped "
        "ratio as a constant weight (arXiv:2506.13585); dppo_tv, dppo_kl: a trust region of probabilities "
        "(arXiv:2602.04879), ipo: the same whatever the advantage's sign; sapo: a soft gate (arXiv:2511.20347); reinforce: "
        "the plain policy gradient, which needs rollout_correction.rollout_is (docs/losses.md)",
    )
    adv_estimator: Literal["grpo", "maxrl"] = Field(
        default="grpo",
        description="grpo: advantages relative to the group (eq. 9); maxrl: accuracies relative to the group's success rate "
        "(arXiv:2602.02710)",
    )
    proximal: Literal["rollout", "recompute"] = Field(
        default="rollout",
        description="denominator of the ratio: the rollout's probabilities, or those of the step's first weights "
        "(decoupled PPO, arXiv:2110.00641)",
    )
    rollout_correction: RolloutCorrectionConfig = RolloutCorrectionConfig()

    clip_ratio_low: float = Field(
        default=0.2, ge=0, lt=1, description="eps_low of eq. 10; of dppo_* and ipo the threshold of the divergence"
    )
    clip_ratio_high: NonNegativeFloat = Field(
        default=0.28, description="eps_high of eq. 10 (clip-higher); of dppo_* and ipo the threshold of the divergence"
    )
    clip_ratio_c: float | None = Field(
        default=10.0,
        gt=1,
        description="dual clip for negative advantages, and of dppo_* and ipo the largest ratio; null switches it off",
    )
    tau_pos: PositiveFloat = Field(default=1.0, description="how sharp the gate of sapo is where the advantage is > 0")
    tau_neg: PositiveFloat = Field(default=1.05, description="the same elsewhere")
    ess_scaling: bool = Field(
        default=False,
        description="multiply each update's learning rate by sqrt(effective samples / samples) of the sequences' weights, "
        "learner / rollout (VCPO, arXiv:2602.17616)",
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

    @property
    def corrects(self) -> bool:
        """Whether token losses get an importance weight or a mask."""
        correction = self.rollout_correction
        return (correction.rollout_is, correction.rollout_rs, correction.opsm_delta) != ("none", "none", None)

    def problems(self) -> Iterator[str]:
        """Refuses what would count the importance weight twice, or not at all, and what MaxRL would not see."""
        weighted, mode = self.rollout_correction.rollout_is != "none", self.loss_mode
        if mode in _AROUND_ROLLOUT and self.proximal == "recompute":
            yield (
                f"loss_mode: {mode} compares the learner with the policy that sampled, so a recomputed denominator has no "
                "place in it; set algorithm.proximal: rollout"
            )
        elif mode == "reinforce" and not weighted:
            yield (
                "loss_mode: reinforce has neither ratio nor clip, so stale tokens need a weight; set "
                "algorithm.rollout_correction.rollout_is: sequence or token"
            )
        elif weighted and self.proximal == "rollout" and mode != "reinforce":
            yield (
                "rollout_correction.rollout_is: needs algorithm.proximal: recompute; with proximal: rollout the "
                f"{_RATIO_OF.get(mode, 'clipped ratio')} is the importance weight already; for truncated weights without a "
                "second forward pass set algorithm.loss_mode: reinforce"
            )
        if self.adv_estimator == "maxrl" and self.filter_groups.metric != "acc":
            yield (
                f"filter_groups.metric: must be acc with algorithm.adv_estimator: maxrl, got {self.filter_groups.metric}; "
                "maxrl reads accuracies alone, so a group that varies in anything else would have no advantage"
            )
