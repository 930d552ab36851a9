"""Every metric Sluice publishes, once: name, unit, who computes it, meaning, healthy range.

`metrics.jsonl`, `GetStatus.metrics`, Prometheus (name with `/` as `_`, prefix `sluice_`) and docs/metrics.md use these
names and no others. `python -m sluice.telemetry.catalogue` prints docs/metrics.md.
"""

from dataclasses import dataclass
from typing import Literal

Source = Literal["learner", "coordinator"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """One catalogue entry."""

    name: str
    unit: str
    source: Source
    meaning: str
    healthy: str
    action: str = ""
    """What to do when it leaves the healthy range."""


def _m(name: str, unit: str, source: Source, meaning: str, healthy: str, action: str = "") -> Metric:
    return Metric(name=name, unit=unit, source=source, meaning=meaning, healthy=healthy, action=action)


CATALOGUE: tuple[Metric, ...] = (
    # --- what the policy can do -------------------------------------------------------------------------------
    _m(
        "eval/avg_at_n",
        "fraction",
        "coordinator",
        "accuracy over held-out prompts and n samples each at temperature 1",
        "rises",
    ),
    _m(
        "eval/pass_at_n",
        "fraction",
        "coordinator",
        "share of held-out prompts with at least one right sample",
        "rises or holds",
    ),
    _m("eval/greedy", "fraction", "coordinator", "accuracy of one greedy completion a held-out prompt", "rises"),
    _m(
        "reward/generated_acc",
        "fraction",
        "coordinator",
        "pass rate of all generated samples, before filtering",
        "rises",
    ),
    _m(
        "reward/generated_mean",
        "reward",
        "coordinator",
        "mean shaped reward of all generated samples, before filtering",
        "rises",
    ),
    _m(
        "reward/trained_mean",
        "reward",
        "coordinator",
        "mean shaped reward of the samples trained; hovers mid-range by construction of the filter",
        "stable",
    ),
    _m(
        "reward/overlong_fraction",
        "fraction",
        "coordinator",
        "share of generated samples with an overlong penalty",
        "< 0.1",
    ),
    _m("reward/overlong_penalty_mean", "reward", "coordinator", "mean overlong penalty of generated samples", "near 0"),
    _m(
        "reward/unparsed_fraction",
        "fraction",
        "coordinator",
        "share of generated samples without an answer to be found",
        "falls",
    ),
    _m(
        "reward/timeout_fraction",
        "fraction",
        "coordinator",
        "share of samples whose grader was killed at its limit",
        "0",
    ),
    _m("reward/error_fraction", "fraction", "coordinator", "share of samples whose grader failed", "0"),
    # --- dynamic sampling -------------------------------------------------------------------------------------
    _m("sampling/acceptance", "fraction", "coordinator", "groups kept / groups judged since the last step", "> 0.2"),
    _m(
        "sampling/all_right_fraction",
        "fraction",
        "coordinator",
        "groups dropped because every sample was right",
        "< 0.7",
    ),
    _m(
        "sampling/all_wrong_fraction",
        "fraction",
        "coordinator",
        "groups dropped because every sample was wrong",
        "< 0.7",
    ),
    _m(
        "sampling/gen_batches",
        "generation batches",
        "coordinator",
        "verdicts since the last assignment / gen_batch_size",
        "1 to 3",
    ),
    _m(
        "sampling/unique_fraction",
        "fraction",
        "coordinator",
        "distinct completions / completions within a group",
        "> 0.5",
    ),
    # --- asynchrony -------------------------------------------------------------------------------------------
    _m(
        "staleness/age_mean_steps",
        "steps",
        "coordinator",
        "mean over trained groups of the age of their oldest token",
        "<= max_staleness",
    ),
    _m("staleness/age_max_steps", "steps", "coordinator", "age of the oldest token trained", "<= max_staleness"),
    _m(
        "queue/groups",
        "groups",
        "coordinator",
        "accepted groups waiting for a step",
        "> 0 when the learner is the bottleneck",
    ),
    _m("queue/in_flight_groups", "groups", "coordinator", "groups being generated or scored", "near gen_batch_size"),
    _m(
        "response/length_mean_tokens",
        "tokens",
        "coordinator",
        "mean completion length of generated samples",
        "no sudden jumps",
    ),
    _m(
        "response/length_max_tokens",
        "tokens",
        "coordinator",
        "longest completion generated",
        "< max_response_length mostly",
    ),
    _m(
        "response/truncated_fraction",
        "fraction",
        "coordinator",
        "share of generated samples cut at max_response_length",
        "< 0.1",
    ),
    _m(
        "rollout/generated_tokens_per_s",
        "tokens/s",
        "coordinator",
        "completion tokens received from all rollouts per second",
        "steady",
    ),
    _m("step/wall_s", "s", "coordinator", "time from one commit to the next", "steady"),
    # --- weight push ------------------------------------------------------------------------------------------
    _m(
        "weights/push_ms",
        "ms",
        "coordinator",
        "from opening a transfer to `applied`, slowest rollout",
        "small beside step/wall_s",
    ),
    _m(
        "weights/receive_ms",
        "ms",
        "coordinator",
        "receiving the bytes in the background, slowest rollout",
        "small beside step/wall_s",
    ),
    _m(
        "weights/stall_ms",
        "ms",
        "coordinator",
        "time without generation while weights were applied, slowest rollout",
        "milliseconds",
    ),
    # --- learner ----------------------------------------------------------------------------------------------
    _m(
        "loss/policy",
        "nats",
        "learner",
        "DAPO objective (sign of a loss), mean over updates; near 0 by construction",
        "around 0",
    ),
    _m(
        "loss/entropy_nats", "nats", "learner", "mean entropy of the policy at trained tokens", "falls slowly, not to 0"
    ),
    _m(
        "loss/clip_fraction_high",
        "fraction",
        "learner",
        "tokens with positive advantage clipped at 1 + clip_ratio_high",
        "< 0.05",
    ),
    _m(
        "loss/clip_fraction_low",
        "fraction",
        "learner",
        "tokens with negative advantage clipped at 1 - clip_ratio_low",
        "< 0.05",
    ),
    _m(
        "loss/clip_fraction_dual",
        "fraction",
        "learner",
        "tokens with negative advantage held by clip_ratio_c",
        "near 0",
    ),
    _m("loss/ratio_mean", "ratio", "learner", "mean of learner / behaviour probability", "0.99 to 1.01"),
    _m("loss/ratio_max", "ratio", "learner", "largest ratio", "< 10"),
    _m("loss/grad_norm", "norm", "learner", "global gradient norm before clipping, mean over updates", "steady"),
    _m("loss/lr", "1", "learner", "learning rate of the step", "as scheduled"),
    _m(
        "mismatch/abs_diff_mean",
        "nats",
        "learner",
        "mean |learner - rollout| log-probability before the step's first update",
        "< 0.01",
    ),
    _m("mismatch/abs_diff_max", "nats", "learner", "largest such difference", "< 1"),
    _m("mismatch/k1_nats", "nats", "learner", "k1 estimate of KL(rollout || learner)", "near 0"),
    _m("mismatch/k3_nats", "nats", "learner", "k3 estimate of KL(rollout || learner)", "< 0.01"),
    _m("mismatch/k3_age0_nats", "nats", "learner", "k3 over tokens of age 0: kernels and precision alone", "< 0.001"),
    _m("mismatch/k3_age1_nats", "nats", "learner", "k3 over tokens of age 1", "< 0.01"),
    _m("mismatch/k3_age2plus_nats", "nats", "learner", "k3 over tokens of age 2 and more", "< 0.05"),
    _m("mismatch/ratio_p50", "ratio", "learner", "median learner / rollout probability", "about 1"),
    _m("mismatch/ratio_p99", "ratio", "learner", "99th percentile of it", "< 2"),
    _m("mismatch/ess", "fraction", "learner", "effective sample size of the ratios, as a share", "> 0.9"),
    _m("learner/train_s", "s", "learner", "time of forward, backward and updates", "steady"),
    _m("learner/wait_s", "s", "learner", "time the learner waited for its batch", "small when generation keeps up"),
    _m("learner/publish_s", "s", "learner", "gathering, packing and digesting the new weights", "small beside train_s"),
    _m("learner/tokens_per_s", "tokens/s", "learner", "trained tokens (prompt included) / train_s", "steady"),
    _m("learner/trained_tokens", "tokens", "learner", "completion tokens in the loss of this step", "steady"),
    _m("learner/updates", "updates", "learner", "optimizer updates of this step", "batch / mini-batch"),
    _m("learner/skipped_updates", "updates", "learner", "updates skipped because loss or gradient was not finite", "0"),
)

NAMES: frozenset[str] = frozenset(metric.name for metric in CATALOGUE)


def render_markdown() -> str:
    """docs/metrics.md."""
    lines = [
        "# Metrics",
        "",
        "Made by `python -m sluice.telemetry.catalogue > docs/metrics.md`; a test keeps it so.",
        "",
    ]
    for source in ("coordinator", "learner"):
        lines += [
            f"## From the {source}",
            "",
            "| metric | unit | meaning | healthy | otherwise |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| `{m.name}` | {m.unit} | {m.meaning} | {m.healthy} | {m.action} |"
            for m in CATALOGUE
            if m.source == source
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    print(render_markdown(), end="")
