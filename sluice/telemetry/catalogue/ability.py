"""What the policy can do: accuracy over held-out prompts, and the graders' scores and statuses."""

from sluice.telemetry.metric import Metric, entry

ABILITY: tuple[Metric, ...] = (
    entry(
        "eval/avg_at_n",
        "fraction",
        "coordinator",
        "accuracy over held-out prompts and n samples each, at `eval.temperature` and `eval.top_p`",
        "rises; `eval/avg_at_n_low` and `eval/avg_at_n_high` say by how much it may be off",
        "flat: look at `sampling/acceptance` (no signal), then `loss/clip_fraction_*` and `learner.lr`; "
        "falling: look at `mismatch/k3_nats` and `loss/entropy_nats`; `learner.resume` takes an earlier checkpoint",
    ),
    entry(
        "eval/pass_at_n",
        "fraction",
        "coordinator",
        "share of held-out prompts with at least one right sample",
        "rises or holds",
        "falling while `eval/avg_at_n` rises: the policy narrows to what the policy already solved; watch "
        "`loss/entropy_nats`, raise `algorithm.clip_ratio_high`, add harder prompts",
    ),
    entry(
        "eval/maj_at_n",
        "fraction",
        "coordinator",
        "share of held-out prompts whose most frequent answer among the n samples is right (docs/evaluation.md); absent where "
        "graders name no answers",
        "rises, above `eval/avg_at_n`",
        "below `eval/avg_at_n`: wrong answers agree with each other; read samples, the grader may miss a form of the answer",
    ),
    *(
        entry(
            f"eval/{measure}_at_n_{end}",
            "fraction",
            "coordinator",
            f"{end} end of the 95 % interval of `eval/{measure}_at_n`, a bootstrap over prompts",
            f"near `eval/{measure}_at_n`",
            "too wide to tell versions apart: more prompts (`eval.prompts`) narrow it, more samples hardly do",
        )
        for measure in ("avg", "pass", "maj")
        for end in ("low", "high")
    ),
    entry(
        "eval/set/*",
        "fraction",
        "coordinator",
        "the measures of one set of `eval.sets`: behind the star come the set's name, a slash and the measure",
        "as of the measure",
        "as of the measure",
    ),
    entry(
        "eval/greedy",
        "fraction",
        "coordinator",
        "accuracy of one greedy completion a held-out prompt",
        "rises",
        "falling while `eval/avg_at_n` rises: the format drifts; read samples of the run and check the end token",
    ),
    entry(
        "eval/tool_use",
        "fraction",
        "coordinator",
        "share of the n samples a held-out prompt in which the policy called a tool; absent where samples are no episodes",
        "rises where the task needs a tool",
        "flat near 0: no episode of a group calls a tool, so nothing rewards it; warm up on examples; falling while "
        "`eval/avg_at_n` rises: the policy has learned to do without",
    ),
    entry(
        "reward/generated_acc",
        "fraction",
        "coordinator",
        "pass rate of all generated samples, before filtering",
        "rises; informative between 0.1 and 0.9",
        "near 0: the task is too hard or the grader is wrong (see `launch.check_reward`); near 1: take harder"
        " prompts, most groups will be dropped as all right",
    ),
    entry(
        "reward/generated_raw_mean",
        "reward",
        "coordinator",
        "mean raw score of all generated samples, before shaping and filtering",
        "rises",
        "falling while `reward/part/*` of one grader rises: that part is gamed; lower its weight",
    ),
    entry(
        "reward/part/*",
        "reward",
        "coordinator",
        "mean of one part of the score, unweighted: a grader of a list of graders (docs/rewards.md), or a component that "
        "a grader names",
        "rises",
        "a part that does not move teaches nothing; a part that moves while the others do not is what the model learns",
    ),
    entry(
        "reward/generated_mean",
        "reward",
        "coordinator",
        "mean shaped reward of all generated samples, before filtering",
        "rises",
        "rising while `eval/avg_at_n` does not: the reward is gamed or prompts are memorised; read samples, "
        "compare graders",
    ),
    entry(
        "reward/trained_mean",
        "reward",
        "coordinator",
        "mean shaped reward of the samples trained; hovers mid-range by construction of the filter",
        "stable",
        "no action on its own; judge progress by `reward/generated_acc` and `eval/avg_at_n`",
    ),
    entry(
        "reward/overlong_fraction",
        "fraction",
        "coordinator",
        "share of generated samples with an overlong penalty",
        "< 0.1",
        "raise `data.max_response_length`, or raise `reward.overlong_buffer.len`: then the penalty begins earlier",
    ),
    entry(
        "reward/overlong_penalty_mean",
        "reward",
        "coordinator",
        "mean overlong penalty of generated samples",
        "near 0",
        "as for `reward/overlong_fraction`; below -0.5 x penalty_factor the penalty drowns the task's reward",
    ),
    entry(
        "reward/unparsed_fraction",
        "fraction",
        "coordinator",
        "share of generated samples in which the grader found no answer",
        "falls, to < 0.05",
        "check the answer format that the prompt asks for against the grader, and whether answers are cut "
        "(`response/truncated_fraction`)",
    ),
    entry(
        "reward/timeout_fraction",
        "fraction",
        "coordinator",
        "share of samples whose grader was killed at its limit",
        "0",
        "find the grader in the reward service's log, which warns from `reward.warn_ungraded_fraction`; raise "
        "`reward.timeout_s` only if the grader needs the time; a sample that was not graded is not counted as wrong",
    ),
    entry(
        "reward/error_fraction",
        "fraction",
        "coordinator",
        "share of samples whose grader failed",
        "0",
        "read `detail` of a failed sample (`GetGroup`); a grader that raises is a bug or a malformed ground truth",
    ),
)
