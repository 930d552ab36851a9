"""Every metric Sluice publishes, once: name, unit, who computes it, meaning, healthy range.

`metrics.jsonl`, `GetStatus.metrics`, Prometheus (name with `/` as `_`, prefix `sluice_`) and docs/metrics.md use these
names and no others. `python -m sluice.telemetry.catalogue` prints docs/metrics.md.
"""

from collections.abc import Iterable

from sluice.telemetry.catalogue.live import LIVE
from sluice.telemetry.metric import Metric
from sluice.telemetry.metric import entry as _m

_LEDGER_TERMS = (
    ("live", "pending, in flight, scored, queued or assigned", "a few batches", "see `queue/in_flight_groups`"),
    ("trained", "whose step was committed", "rises by a batch a step", "see `step/wall_s`"),
    ("filtered", "dropped without signal, by dynamic sampling", "below trained", "see `sampling/acceptance`"),
    ("stale", "dropped as too old to be trained", "near 0", "fewer rollouts, or a larger `coordinator.max_staleness`"),
    (
        "surplus",
        "over-generated, of a synchronous schedule",
        "0 unless max_staleness is 0",
        "lower `data.gen_batch_size`",
    ),
    ("rollback", "dropped because weights were rolled back", "0", "expected after a rollback only"),
    ("failed", "that could not be generated or graded", "near 0", "`sluice ledger` splits them by reason"),
    ("abandoned", "given up when the run ended", "0 while the run goes on", "expected after a stop only"),
)
"""Term, whose groups, healthy, otherwise. The figures are since the start of the run, before the step is booked."""


def _ledger() -> tuple[Metric, ...]:
    """Both sides of the conservation law."""
    otherwise = "keep the run directory and report it: a group or a token is in no term, or in two"
    sides = (
        ("groups", "admitted", "groups admitted"),
        ("tokens", "received", "completion tokens received from rollouts"),
    )
    return (
        _m(
            "ledger/closed",
            "0 or 1",
            "coordinator",
            "whether both sides agree, in groups and in tokens",
            "1",
            otherwise,
        ),
        *(
            _m(
                f"ledger/{name}_{unit}",
                unit,
                "coordinator",
                f"{what}: the sum of the terms",
                "rises",
                "see `step/wall_s`",
            )
            for unit, name, what in sides
        ),
        *(
            _m(f"ledger/{term}_{unit}", unit, "coordinator", f"{of} {whose}", healthy, action)
            for unit, of in (("groups", "groups"), ("tokens", "completion tokens of groups"))
            for term, whose, healthy, action in _LEDGER_TERMS
        ),
        _m(
            "ledger/lost_tokens",
            "tokens",
            "coordinator",
            "completion tokens received and thrown away: too old after a failed attempt, or refused",
            "near 0",
            "rollouts die or return what they were not asked for; `sluice explain` shows the attempts of a group",
        ),
    )


_OF_STEPS: tuple[Metric, ...] = (
    # --- what the policy can do -------------------------------------------------------------------------------
    _m(
        "eval/avg_at_n",
        "fraction",
        "coordinator",
        "accuracy over held-out prompts and n samples each at temperature 1",
        "rises; the standard error at 256 prompts is 1.5 to 3 points",
        "flat: look at `sampling/acceptance` (no signal), then `loss/clip_fraction_*` and `learner.lr`; "
        "falling: look at `mismatch/k3_nats` and `loss/entropy_nats`; `learner.resume` takes an earlier checkpoint",
    ),
    _m(
        "eval/pass_at_n",
        "fraction",
        "coordinator",
        "share of held-out prompts with at least one right sample",
        "rises or holds",
        "falling while `eval/avg_at_n` rises: the policy narrows to what it already solved; watch "
        "`loss/entropy_nats`, raise `algorithm.clip_ratio_high`, add harder prompts",
    ),
    _m(
        "eval/greedy",
        "fraction",
        "coordinator",
        "accuracy of one greedy completion a held-out prompt",
        "rises",
        "falling while `eval/avg_at_n` rises: the format drifts; read samples of the run and check the end token",
    ),
    _m(
        "reward/generated_acc",
        "fraction",
        "coordinator",
        "pass rate of all generated samples, before filtering",
        "rises; informative between 0.1 and 0.9",
        "near 0: the task is too hard or the grader is wrong (see `launch.check_reward`); near 1: take harder"
        " prompts, most groups will be dropped as all right",
    ),
    _m(
        "reward/generated_raw_mean",
        "reward",
        "coordinator",
        "mean raw score of all generated samples, before shaping and filtering",
        "rises",
        "falling while `reward/part/*` of one grader rises: that part is gamed; lower its weight",
    ),
    _m(
        "reward/part/*",
        "reward",
        "coordinator",
        "mean of one part of the score, unweighted: a grader of several (docs/rewards.md), or a component that one names",
        "rises",
        "a part that does not move teaches nothing; one that alone moves is what the model learns",
    ),
    _m(
        "reward/generated_mean",
        "reward",
        "coordinator",
        "mean shaped reward of all generated samples, before filtering",
        "rises",
        "rising while `eval/avg_at_n` does not: the reward is gamed or prompts are memorised; read samples, "
        "compare graders",
    ),
    _m(
        "reward/trained_mean",
        "reward",
        "coordinator",
        "mean shaped reward of the samples trained; hovers mid-range by construction of the filter",
        "stable",
        "no action on its own; judge progress by `reward/generated_acc` and `eval/avg_at_n`",
    ),
    _m(
        "reward/overlong_fraction",
        "fraction",
        "coordinator",
        "share of generated samples with an overlong penalty",
        "< 0.1",
        "raise `data.max_response_length`, or lengthen `reward.overlong_buffer.len` so that the slope is felt earlier",
    ),
    _m(
        "reward/overlong_penalty_mean",
        "reward",
        "coordinator",
        "mean overlong penalty of generated samples",
        "near 0",
        "as for `reward/overlong_fraction`; below -0.5 x penalty_factor the penalty drowns the task's reward",
    ),
    _m(
        "reward/unparsed_fraction",
        "fraction",
        "coordinator",
        "share of generated samples without an answer to be found",
        "falls, to < 0.05",
        "check the answer format that the prompt asks for against the grader, and whether answers are cut "
        "(`response/truncated_fraction`)",
    ),
    _m(
        "reward/timeout_fraction",
        "fraction",
        "coordinator",
        "share of samples whose grader was killed at its limit",
        "0",
        "find the grader in the reward service's log, which warns from `reward.warn_ungraded_fraction`; raise "
        "`reward.timeout_s` only if it is honest work; "
        "such samples are not wrong, they are ungraded",
    ),
    _m(
        "reward/error_fraction",
        "fraction",
        "coordinator",
        "share of samples whose grader failed",
        "0",
        "read `detail` of a failed sample (`GetGroup`); a grader that raises is a bug or a malformed ground truth",
    ),
    # --- dynamic sampling -------------------------------------------------------------------------------------
    _m(
        "sampling/acceptance",
        "fraction",
        "coordinator",
        "groups kept / groups judged since the last step",
        "> 0.2",
        "look at which of all right and all wrong grows: take harder or easier prompts, raise `rollout.n`, or"
        " set `algorithm.filter_groups.max_num_gen_batches` to stop instead of burning samples",
    ),
    _m(
        "sampling/all_right_fraction",
        "fraction",
        "coordinator",
        "groups dropped because every sample was right",
        "< 0.7",
        "the data is learnt: harder prompts, or end the run",
    ),
    _m(
        "sampling/all_wrong_fraction",
        "fraction",
        "coordinator",
        "groups dropped because every sample was wrong",
        "< 0.7",
        "easier prompts or more samples a group (`rollout.n`); at the very start check the grader and the template",
    ),
    _m(
        "sampling/gen_batches",
        "generation batches",
        "coordinator",
        "verdicts since the last assignment / gen_batch_size",
        "1 to 3",
        "above 3 generation is the bottleneck: more rollouts, a larger `data.gen_batch_size`, or data with more signal",
    ),
    _m(
        "sampling/unique_fraction",
        "fraction",
        "coordinator",
        "distinct completions / completions within a group",
        "> 0.5",
        "near 0 early: seeds or temperature are wrong; sinking with `loss/entropy_nats`: the policy "
        "collapses, raise `algorithm.clip_ratio_high`",
    ),
    # --- asynchrony -------------------------------------------------------------------------------------------
    _m(
        "staleness/age_mean_steps",
        "steps",
        "coordinator",
        "mean over trained groups of the age of their oldest token",
        "<= coordinator.max_staleness",
        "near the bound: the learner is the bottleneck; near 0 while it waits: rollouts are; lower "
        "`coordinator.max_staleness` when `mismatch/k3_nats` grows with age",
    ),
    _m(
        "staleness/age_max_steps",
        "steps",
        "coordinator",
        "age of the oldest token trained",
        "<= coordinator.max_staleness, always",
        "above the bound is a bug: keep the run directory and report the step",
    ),
    _m(
        "queue/groups",
        "groups",
        "coordinator",
        "accepted groups waiting for a step",
        "> 0 when the learner is the bottleneck",
        "0 while `learner/wait_s` is large: add rollouts; full all the time: the learner is the bottleneck, "
        "fewer rollouts will do",
    ),
    _m(
        "queue/in_flight_groups",
        "groups",
        "coordinator",
        "groups being generated or scored",
        "near gen_batch_size",
        "far below: no READY rollout, or admission waits for the staleness bound or for room in Redis",
    ),
    _m(
        "response/length_mean_tokens",
        "tokens",
        "coordinator",
        "mean completion length of generated samples",
        "no sudden jumps",
        "a jump up with falling accuracy: rambling, switch on the overlong buffer; a fall to almost nothing: "
        "the reward pays for short answers",
    ),
    _m(
        "response/length_max_tokens",
        "tokens",
        "coordinator",
        "longest completion generated",
        "mostly < data.max_response_length",
        "always at the limit: see `response/truncated_fraction`",
    ),
    _m(
        "response/truncated_fraction",
        "fraction",
        "coordinator",
        "share of generated samples cut at max_response_length",
        "< 0.1",
        "raise `data.max_response_length` or use the overlong buffer; truncated samples count as wrong and "
        "teach shortness",
    ),
    _m(
        "rollout/generated_tokens_per_s",
        "tokens/s",
        "coordinator",
        "completion tokens received from all rollouts per second",
        "steady",
        "a step down: a rollout was lost or quarantined (see the services); a slow decline: responses grow longer",
    ),
    _m(
        "step/wall_s",
        "s",
        "coordinator",
        "time from one commit to the next",
        "steady",
        "compare `learner/train_s`, `learner/wait_s` and `learner/publish_s`: the largest says whom to give more",
    ),
    *_ledger(),
    # --- weight push ------------------------------------------------------------------------------------------
    _m(
        "weights/push_ms",
        "ms",
        "coordinator",
        "from opening a transfer to `applied`, slowest rollout",
        "< 10 % of step/wall_s",
        "compare `weights/receive_ms`: if that is most of it, raise `weights.bucket_bytes` or use a faster "
        "network; otherwise a rollout is slow to apply",
    ),
    _m(
        "weights/receive_ms",
        "ms",
        "coordinator",
        "receiving the bytes in the background, slowest rollout",
        "< 10 % of step/wall_s",
        "check which interface the bytes take; raise `weights.bucket_bytes`",
    ),
    _m(
        "weights/stall_ms",
        "ms",
        "coordinator",
        "time without generation while weights were applied, slowest rollout",
        "milliseconds; < 1 % of step/wall_s",
        "with `weights.inflight: recompute` the stall includes the prompts computed again; use `keep`",
    ),
    # --- learner ----------------------------------------------------------------------------------------------
    _m(
        "loss/policy",
        "nats",
        "learner",
        "DAPO objective (sign of a loss), mean over updates; near 0 by construction",
        "around 0, no trend",
        "a steady drift means ratios far from 1: see `loss/ratio_mean`; accuracy, not this, says whether the "
        "run learns",
    ),
    _m(
        "loss/entropy_nats",
        "nats",
        "learner",
        "mean entropy of the policy at trained tokens",
        "falls slowly, not to 0",
        "falling to 0 with flat accuracy is collapse: raise `algorithm.clip_ratio_high` or lower "
        "`learner.lr`; climbing is divergence: lower `algorithm.clip_ratio_high` or `learner.lr`",
    ),
    _m(
        "loss/clip_fraction_high",
        "fraction",
        "learner",
        "tokens with positive advantage clipped at 1 + clip_ratio_high",
        "< 0.05",
        "above: updates are too large or too old; lower `learner.lr`, fewer mini-batches a step, lower "
        "`coordinator.max_staleness`",
    ),
    _m(
        "loss/clip_fraction_low",
        "fraction",
        "learner",
        "tokens with negative advantage clipped at 1 - clip_ratio_low",
        "< 0.05",
        "as for `loss/clip_fraction_high`",
    ),
    _m(
        "loss/clip_fraction_dual",
        "fraction",
        "learner",
        "tokens with negative advantage held by clip_ratio_c",
        "< 0.001",
        "tokens the rollout found likely and the learner very unlikely: look at `mismatch/k3_age0_nats` for a"
        " precision or kernel problem, then at age",
    ),
    _m(
        "loss/ratio_mean",
        "ratio",
        "learner",
        "mean of learner / behaviour probability (/ proximal with `algorithm.proximal: recompute`)",
        "0.99 to 1.01",
        "a bias at age 0 means both sides do not compute the same distribution: temperature, precision, template",
    ),
    _m(
        "loss/ratio_p50",
        "ratio",
        "learner",
        "median ratio over all updates of the step",
        "0.99 to 1.01",
        "as for `loss/ratio_mean`",
    ),
    _m(
        "loss/ratio_p99",
        "ratio",
        "learner",
        "99th percentile of the ratio over all updates of the step (bins of 0.1 % between e^-3 and e^3)",
        "< 1 + clip_ratio_high",
        "as for `loss/clip_fraction_high`",
    ),
    _m(
        "loss/ratio_max",
        "ratio",
        "learner",
        "largest ratio",
        "< 10",
        "isolated peaks are held by the clip; lasting ones: as for `loss/clip_fraction_dual`",
    ),
    _m(
        "loss/is_truncated_fraction",
        "fraction",
        "learner",
        "tokens whose importance weight was cut at rollout_is_threshold",
        "< 0.05; 0 without `rollout_is`",
        "above: proximal and rollout policy are far apart; lower `coordinator.max_staleness`, look at `mismatch/*`",
    ),
    _m(
        "loss/rs_masked_fraction",
        "fraction",
        "learner",
        "tokens taken out of the loss by rollout_rs",
        "< 0.05; 0 without `rollout_rs`",
        "above: much of the batch teaches nothing; widen `rollout_rs_threshold` or lower `coordinator.max_staleness`",
    ),
    _m(
        "loss/grad_norm",
        "norm",
        "learner",
        "global gradient norm before clipping, mean over updates",
        "steady; peaks < 10 x the median",
        "peaks that last: lower `learner.lr` or `learner.grad_clip`, look at `reward/*` for a broken grader",
    ),
    _m(
        "loss/lr",
        "1",
        "learner",
        "learning rate of the step",
        "as scheduled",
        "check `learner.lr` and `learner.warmup_steps` in config.yaml",
    ),
    _m(
        "mismatch/abs_diff_mean",
        "nats",
        "learner",
        "mean absolute difference of learner and rollout log-probabilities before the step's first update",
        "at age 0 about 1e-6 in float32 and up to 0.03 in bfloat16; more with age",
        "compare the `mismatch/k3_age*` metrics: age 0 large is the engine, only older ages large is staleness",
    ),
    _m(
        "mismatch/abs_diff_max",
        "nats",
        "learner",
        "largest such difference",
        "< 1",
        "single tokens may differ in bfloat16; a growing maximum precedes `loss/clip_fraction_dual`",
    ),
    _m(
        "mismatch/k1_nats",
        "nats",
        "learner",
        "k1 estimate of KL(rollout ‖ learner)",
        "near 0",
        "a steady sign is a bias (temperature, truncated sampling); it may be negative, `mismatch/k3_nats` may not",
    ),
    _m(
        "mismatch/k1_age0_nats",
        "nats",
        "learner",
        "k1 over tokens of age 0",
        "near 0",
        "as for `mismatch/k3_age0_nats`",
    ),
    _m(
        "mismatch/k1_age1_nats",
        "nats",
        "learner",
        "k1 over tokens of age 1",
        "near 0",
        "as for `mismatch/k3_age1_nats`",
    ),
    _m(
        "mismatch/k1_age2plus_nats",
        "nats",
        "learner",
        "k1 over tokens of age 2 and more",
        "near 0",
        "as for `mismatch/k3_age2plus_nats`",
    ),
    _m(
        "mismatch/k3_nats",
        "nats",
        "learner",
        "k3 estimate of KL(rollout ‖ learner)",
        "< 0.01",
        "look at it by age; lower `coordinator.max_staleness` or `learner.lr` if it grows with age, else "
        "compare dtypes and engine versions",
    ),
    _m(
        "mismatch/k3_age0_nats",
        "nats",
        "learner",
        "k3 over tokens of age 0: kernels, precision, and old KV under tokens sampled after a push (`weights.inflight: keep`)",
        "< 0.001",
        "try `weights.inflight: recompute`; if that changes nothing, run the rollout in float32 to see the floor and "
        "compare dtypes and engine versions",
    ),
    _m(
        "mismatch/k3_age1_nats",
        "nats",
        "learner",
        "k3 over tokens of age 1",
        "< 0.01",
        "lower `learner.lr` or the mini-batches a step; `coordinator.max_staleness: 0` shows the run without it",
    ),
    _m(
        "mismatch/k3_age2plus_nats",
        "nats",
        "learner",
        "k3 over tokens of age 2 and more",
        "< 0.05",
        "lower `coordinator.max_staleness`; measured on the demo task: nearly free to 4 optimizer updates of "
        "lag, costly at 8 (ADR 0004)",
    ),
    _m(
        "mismatch/ratio_p50",
        "ratio",
        "learner",
        "median learner / rollout probability",
        "0.99 to 1.01",
        "a shifted median is a bias of all tokens: temperature or weights differ, check that pushes are `applied`",
    ),
    _m(
        "mismatch/ratio_p99",
        "ratio",
        "learner",
        "99th percentile of it",
        "< 2",
        "as for `mismatch/k3_nats`",
    ),
    _m(
        "mismatch/ess",
        "fraction",
        "learner",
        "effective sample size of the ratios, as a share",
        "> 0.9",
        "below 0.9 a tenth of the batch is lost to reweighting; below 0.5 lower `coordinator.max_staleness` at once",
    ),
    _m(
        "learner/train_s",
        "s",
        "learner",
        "time of forward, backward and updates",
        "steady",
        "more ranks, or a larger `learner.max_tokens_per_micro_batch` while memory allows",
    ),
    _m(
        "learner/wait_s",
        "s",
        "learner",
        "time the learner waited for its batch",
        "< 10 % of step/wall_s",
        "generation is the bottleneck: more rollouts, a higher `coordinator.max_staleness`, or see "
        "`sampling/acceptance`",
    ),
    _m(
        "learner/publish_s",
        "s",
        "learner",
        "for how long publishing the new weights keeps the learner from its next step; sending them does not",
        "< 10 % of learner/train_s",
        "compare `learner/gather_ms`, `learner/pack_ms` and `learner/digest_ms`; all grow with the model: fewer, larger "
        "steps",
    ),
    _m(
        "learner/gather_ms",
        "ms",
        "learner",
        "of publishing: waiting for tensors from the other ranks (rank 0)",
        "most of learner/publish_s with several ranks, 0 with one",
        "the ranks' network is slow, or a rank comes late",
    ),
    _m(
        "learner/pack_ms",
        "ms",
        "learner",
        "of publishing: checking, converting and copying tensors into the snapshot (rank 0)",
        "a few ms for each 10 MB",
        "on a CPU `learner.threads` convert; the machine's memory is busy",
    ),
    _m(
        "learner/digest_ms",
        "ms",
        "learner",
        "of publishing: the digest of the snapshot (rank 0)",
        "about 1 ms for each 2 MB",
        "another process uses the core",
    ),
    _m(
        "learner/tokens_per_s",
        "tokens/s",
        "learner",
        "trained tokens (prompt included) / train_s",
        "steady",
        "a fall at equal lengths: another process on the machine, or micro-batches too small "
        "(`learner.max_tokens_per_micro_batch`)",
    ),
    _m(
        "learner/trained_tokens",
        "tokens",
        "learner",
        "completion tokens in the loss of this step",
        "follows response/length_mean_tokens",
        "0 means that everything was masked: check `algorithm.overlong_filtering`",
    ),
    _m(
        "learner/updates",
        "updates",
        "learner",
        "optimizer updates of this step",
        "ceil(train_batch_size / mini_batch_size)",
        "fewer: see `learner/skipped_updates`",
    ),
    _m(
        "learner/skipped_updates",
        "updates",
        "learner",
        "updates skipped because loss or gradient was not finite",
        "0",
        "lower `learner.lr`; the run stops after `learner.max_skipped_updates` in a row; look for a reward "
        "that is not finite",
    ),
)

CATALOGUE: tuple[Metric, ...] = (*_OF_STEPS, *LIVE)

NAMES: frozenset[str] = frozenset(metric.name for metric in CATALOGUE)

_BY_NAME = {metric.name: metric for metric in CATALOGUE}


def metric_of(name: str) -> Metric:
    """The entry of a metric, or of the pattern that it falls under. Raises KeyError for a name that has none."""
    return _BY_NAME.get(f"{name.rpartition('/')[0]}/*") or _BY_NAME[name]


def render_markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made by `python -m sluice.telemetry.catalogue > docs/metrics.md`; a test keeps it so. How to watch them, and what",
        "warns: [monitoring.md](monitoring.md). Prometheus has `queue/groups` as `sluice_queue_groups`, and a counter with",
        "`_total` at its end.",
        "",
    ]
    for source in ("coordinator", "learner"):
        lines += [f"## Of a step, from the {source}", "", *_table(m for m in _OF_STEPS if m.source == source)]
    lines += ["## Of this moment, on the Prometheus endpoints only", ""]
    for source in ("coordinator", "rollout", "reward", "every service"):
        lines += [f"### From the {source}", "", *_table(m for m in LIVE if m.source == source)]
    return "\n".join(lines)


def _table(metrics: Iterable[Metric]) -> list[str]:
    rows = [f"| `{m.name}` | {m.unit} | {m.meaning} | {m.healthy} | {m.action} |" for m in metrics]
    return ["| metric | unit | meaning | healthy | otherwise |", "|---|---|---|---|---|", *rows, ""]
