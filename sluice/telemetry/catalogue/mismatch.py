"""How far learner and rollout are apart on the tokens of a step, before the step's first update."""

from sluice.telemetry.metric import Metric, entry

MISMATCH: tuple[Metric, ...] = (
    entry(
        "mismatch/abs_diff_mean",
        "nats",
        "learner",
        "mean absolute difference of learner and rollout log-probabilities before the step's first update",
        "at age 0 about 1e-6 in float32 and up to 0.03 in bfloat16; more with age",
        "compare the `mismatch/k3_age*` metrics: age 0 large is the engine, only older ages large is staleness",
    ),
    entry(
        "mismatch/abs_diff_max",
        "nats",
        "learner",
        "largest absolute difference of learner and rollout log-probabilities",
        "< 1",
        "single tokens may differ in bfloat16; a growing maximum precedes `loss/clip_fraction_dual`",
    ),
    entry(
        "mismatch/k1_nats",
        "nats",
        "learner",
        "k1 estimate of KL(rollout ‖ learner)",
        "near 0",
        "a steady sign is a bias (temperature, truncated sampling); k1 may be negative, `mismatch/k3_nats` may not",
    ),
    entry(
        "mismatch/k1_age0_nats",
        "nats",
        "learner",
        "k1 over tokens of age 0",
        "near 0",
        "as for `mismatch/k3_age0_nats`",
    ),
    entry(
        "mismatch/k1_age1_nats",
        "nats",
        "learner",
        "k1 over tokens of age 1",
        "near 0",
        "as for `mismatch/k3_age1_nats`",
    ),
    entry(
        "mismatch/k1_age2plus_nats",
        "nats",
        "learner",
        "k1 over tokens of age 2 and more",
        "near 0",
        "as for `mismatch/k3_age2plus_nats`",
    ),
    entry(
        "mismatch/k3_nats",
        "nats",
        "learner",
        "k3 estimate of KL(rollout ‖ learner)",
        "< 0.01",
        "look at k3 by age; lower `coordinator.max_staleness` or `learner.lr` if k3 grows with age, else "
        "compare dtypes and engine versions",
    ),
    entry(
        "mismatch/k3_age0_nats",
        "nats",
        "learner",
        "k3 over tokens of age 0: kernels, precision, and old KV under tokens sampled after a push (`weights.inflight: keep`)",
        "< 0.001",
        "try `weights.inflight: recompute`; if k3 stays, run the rollout in float32 to see the floor and "
        "compare dtypes and engine versions",
    ),
    entry(
        "mismatch/k3_age1_nats",
        "nats",
        "learner",
        "k3 over tokens of age 1",
        "< 0.01",
        "lower `learner.lr` or the mini-batches a step; `coordinator.max_staleness: 0` shows the run without age",
    ),
    entry(
        "mismatch/k3_age2plus_nats",
        "nats",
        "learner",
        "k3 over tokens of age 2 and more",
        "< 0.05",
        "lower `coordinator.max_staleness`; on the demo task a lag of up to 4 optimizer updates cost almost no "
        "accuracy, a lag of 8 did (ADR 0004)",
    ),
    entry(
        "mismatch/ratio_p50",
        "ratio",
        "learner",
        "median learner / rollout probability",
        "0.99 to 1.01",
        "a shifted median is a bias of all tokens: temperature or weights differ, check that pushes are `applied`",
    ),
    entry(
        "mismatch/ratio_p99",
        "ratio",
        "learner",
        "99th percentile of learner / rollout probability",
        "< 2",
        "as for `mismatch/k3_nats`",
    ),
    entry(
        "mismatch/ess",
        "fraction",
        "learner",
        "effective sample size of the ratios, as a share of the tokens",
        "> 0.9",
        "below 0.9 a tenth of the batch is lost to reweighting; below 0.5 lower `coordinator.max_staleness` at once",
    ),
)
