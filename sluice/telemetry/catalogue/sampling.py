"""Which groups dynamic sampling keeps, and why the other groups are dropped."""

from sluice.telemetry.metric import Metric, entry

SAMPLING: tuple[Metric, ...] = (
    entry(
        "sampling/acceptance",
        "fraction",
        "coordinator",
        "groups kept / groups judged since the last step",
        "> 0.2",
        "look at which of all right and all wrong grows: take harder or easier prompts, raise `rollout.n`, or"
        " set `algorithm.filter_groups.max_num_gen_batches` to stop instead of burning samples",
    ),
    entry(
        "sampling/all_right_fraction",
        "fraction",
        "coordinator",
        "groups dropped because every sample was right",
        "< 0.7",
        "the data is learnt: harder prompts, or end the run",
    ),
    entry(
        "sampling/all_wrong_fraction",
        "fraction",
        "coordinator",
        "groups dropped because every sample was wrong",
        "< 0.7",
        "easier prompts or more samples a group (`rollout.n`); at the very start check the grader and the template",
    ),
    entry(
        "sampling/dropped_tokens_fraction",
        "fraction",
        "coordinator",
        "tokens of judged groups that were dropped / tokens of judged groups, since the last step",
        "< 0.5",
        "with data that come again set `data.sampler: difficulty`, or take prompts with more signal",
    ),
    entry(
        "sampling/predicted_acceptance",
        "fraction",
        "coordinator",
        "mean chance of a signal that `data.sampler: difficulty` expected at admission, of the groups judged since the last "
        "step; beside `sampling/acceptance`",
        "within 0.1 of `sampling/acceptance`",
        "far above what is seen: pass rates change within some 300 groups, a lower `learner.lr` keeps them truer; the "
        "curve is in the ledger (docs/ledger.md)",
    ),
    entry(
        "sampling/calibration_error",
        "fraction",
        "coordinator",
        "expected calibration error of the predicted chance, ten bins over the newest 1000 judged groups "
        "(`data.sampler: difficulty`)",
        "< 0.15",
        "high after some steps: as for `sampling/predicted_acceptance`",
    ),
    entry(
        "sampling/chosen_fraction",
        "fraction",
        "coordinator",
        "groups whose prompt `data.sampler: difficulty` took for its chance, not in its turn / judged groups since the last "
        "step",
        "0 in the first pass, then about 0.9; lower where most prompts are passed over",
        "0 with data that are larger than the run is long: no prompt comes again; the order is all there is",
    ),
    entry(
        "sampling/coverage",
        "fraction",
        "coordinator",
        "prompts of the data that were drawn at least once / prompts (`data.sampler: difficulty`)",
        "rises to 1",
        "below 1 it is the first pass, where `data.sampler: difficulty` does what `shuffle` does",
    ),
    entry(
        "sampling/gen_batches",
        "generation batches",
        "coordinator",
        "verdicts since the last assignment / gen_batch_size",
        "1 to 3",
        "above 3 generation is the bottleneck: more rollouts, a larger `data.gen_batch_size`, or data with more signal",
    ),
    entry(
        "sampling/unique_fraction",
        "fraction",
        "coordinator",
        "distinct completions / completions within a group",
        "> 0.5",
        "near 0 in the first steps: seeds or temperature are wrong; falling with `loss/entropy_nats`: the policy "
        "collapses, raise `algorithm.clip_ratio_high`",
    ),
)
