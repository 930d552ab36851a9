"""What the charts of the overview show: which metrics, under which name, unit and scale. Axes and colours: charts.py."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One metric of a panel."""

    metric: str
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One chart. `scale` multiplies the values: 100 for a share that is shown in percent."""

    key: str
    title: str
    unit: str
    lines: tuple[Line, ...]
    scale: float = 1.0
    log: bool = False
    """Whether the values span decades."""
    from_zero: bool = True
    most: float | None = None
    """The largest value that there can be."""


def _panel(key: str, title: str, unit: str, *lines: tuple[str, str], **how: float | bool) -> Panel:
    return Panel(key=key, title=title, unit=unit, lines=tuple(Line(metric=m, label=label) for m, label in lines), **how)  # type: ignore[arg-type]


ACCURACY = _panel(
    "accuracy", "Held-out accuracy", "%", ("eval/avg_at_n", "avg@n"), ("eval/greedy", "greedy"), scale=100
)
"""Of evaluations, over versions; the other panels are of steps."""

PANELS: tuple[Panel, ...] = (
    _panel(
        "reward",
        "Reward",
        "shaped reward",
        ("reward/generated_mean", "before the filter"),
        ("reward/trained_mean", "after the filter"),
        from_zero=False,
    ),
    _panel(
        "sampling",
        "Dynamic sampling",
        "% of groups",
        ("sampling/acceptance", "kept"),
        ("sampling/all_right_fraction", "dropped: all right"),
        ("sampling/all_wrong_fraction", "dropped: all wrong"),
        scale=100,
        most=100,
    ),
    _panel(
        "age",
        "Age of the oldest token",
        "steps",
        ("staleness/age_mean_steps", "mean"),
        ("staleness/age_max_steps", "largest"),
    ),
    _panel("entropy", "Entropy", "nats", ("loss/entropy_nats", "of the policy at trained tokens")),
    _panel(
        "length",
        "Response length",
        "tokens",
        ("response/length_mean_tokens", "mean"),
        ("response/length_max_tokens", "longest"),
    ),
    _panel(
        "clip",
        "Clipped tokens",
        "% of tokens",
        ("loss/clip_fraction_high", "at 1 + ε high"),
        ("loss/clip_fraction_low", "at 1 − ε low"),
        ("loss/clip_fraction_dual", "dual clip"),
        scale=100,
    ),
    _panel(
        "mismatch",
        "Mismatch of rollout and learner",
        "nats (k3)",
        ("mismatch/k3_age0_nats", "age 0"),
        ("mismatch/k3_age1_nats", "age 1"),
        ("mismatch/k3_age2plus_nats", "age 2 and more"),
        log=True,
    ),
    _panel(
        "throughput",
        "Throughput",
        "tokens/s",
        ("rollout/generated_tokens_per_s", "generated"),
        ("learner/tokens_per_s", "trained, while training"),
    ),
    _panel(
        "step",
        "Where a step's time goes",
        "s",
        ("step/wall_s", "step"),
        ("learner/train_s", "training"),
        ("learner/wait_s", "learner waits"),
    ),
    _panel("push", "Weight push", "ms", ("weights/push_ms", "push"), ("weights/stall_ms", "generation stands still")),
    _panel("grad", "Gradient norm", "norm", ("loss/grad_norm", "before clipping")),
    _panel("mfu", "Use of the devices", "%", ("learner/mfu", "MFU"), ("rollout/kv_use", "fullest KV cache"), scale=100),
    _panel("memory", "Memory of a learner's rank", "GB", ("learner/peak_memory_bytes", "peak"), scale=1e-9),
)
