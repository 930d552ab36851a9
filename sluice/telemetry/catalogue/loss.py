"""The learner's objective, and what clips and corrections do."""

from sluice.telemetry.metric import Metric, entry

LOSS: tuple[Metric, ...] = (
    entry(
        "loss/policy",
        "nats",
        "learner",
        "DAPO objective (sign of a loss), mean over updates; near 0 by construction",
        "around 0, no trend",
        "a steady drift means ratios far from 1: see `loss/ratio_mean`; `eval/avg_at_n`, not the loss, says whether "
        "the run learns",
    ),
    entry(
        "loss/entropy_nats",
        "nats",
        "learner",
        "mean entropy of the policy at trained tokens",
        "falls slowly, not to 0",
        "falling to 0 with flat accuracy is collapse: raise `algorithm.clip_ratio_high` or lower "
        "`learner.lr`; climbing is divergence: lower `algorithm.clip_ratio_high` or `learner.lr`",
    ),
    entry(
        "loss/clip_fraction_high",
        "fraction",
        "learner",
        "tokens with positive advantage clipped at 1 + clip_ratio_high",
        "< 0.05",
        "above: updates are too large or too old; lower `learner.lr`, fewer mini-batches a step, lower "
        "`coordinator.max_staleness`",
    ),
    entry(
        "loss/clip_fraction_low",
        "fraction",
        "learner",
        "tokens with negative advantage clipped at 1 - clip_ratio_low",
        "< 0.05",
        "as for `loss/clip_fraction_high`",
    ),
    entry(
        "loss/clip_fraction_dual",
        "fraction",
        "learner",
        "tokens with negative advantage held by clip_ratio_c",
        "< 0.001",
        "tokens the rollout found likely and the learner very unlikely: look at `mismatch/k3_age0_nats` for a"
        " precision or kernel problem, then at the older ages",
    ),
    entry(
        "loss/ratio_mean",
        "ratio",
        "learner",
        "mean of learner / behaviour probability (/ proximal with `algorithm.proximal: recompute`)",
        "0.99 to 1.01",
        "a bias at age 0 means that learner and rollout compute different distributions: temperature, precision, template",
    ),
    entry(
        "loss/ratio_p50",
        "ratio",
        "learner",
        "median ratio over all updates of the step",
        "0.99 to 1.01",
        "as for `loss/ratio_mean`",
    ),
    entry(
        "loss/ratio_p99",
        "ratio",
        "learner",
        "99th percentile of the ratio over all updates of the step (bins of 0.1 % between e^-3 and e^3)",
        "< 1 + clip_ratio_high",
        "as for `loss/clip_fraction_high`",
    ),
    entry(
        "loss/ratio_max",
        "ratio",
        "learner",
        "largest ratio",
        "< 10",
        "isolated peaks are held by the clip; lasting peaks: as for `loss/clip_fraction_dual`",
    ),
    entry(
        "loss/is_truncated_fraction",
        "fraction",
        "learner",
        "tokens whose importance weight was cut at rollout_is_threshold",
        "< 0.05; 0 without `rollout_is`",
        "above: proximal and rollout policy are far apart; lower `coordinator.max_staleness`, look at `mismatch/*`",
    ),
    entry(
        "loss/rs_masked_fraction",
        "fraction",
        "learner",
        "tokens taken out of the loss by rollout_rs or opsm_delta",
        "< 0.05; 0 without `rollout_rs` and `opsm_delta`",
        "above: much of the batch teaches nothing; widen `rollout_rs_threshold` or lower `coordinator.max_staleness`",
    ),
    entry(
        "loss/lr_factor",
        "1",
        "learner",
        "factor of the learning rate with ess_scaling, mean over updates; absent without",
        "> 0.5",
        "below: few samples outweigh the others; lower `coordinator.max_staleness`, look at `mismatch/ess`",
    ),
    entry(
        "loss/grad_norm",
        "norm",
        "learner",
        "global gradient norm before clipping, mean over updates",
        "steady; peaks < 10 x the median",
        "peaks that last: lower `learner.lr` or `learner.grad_clip`, look at `reward/*` for a broken grader",
    ),
    entry(
        "loss/lr",
        "1",
        "learner",
        "learning rate of the step",
        "as scheduled",
        "check `learner.lr` and `learner.warmup_steps` in config.yaml",
    ),
)
