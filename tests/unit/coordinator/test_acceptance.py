"""How many groups without a verdict are foretold to be kept."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.coordinator.state.acceptance import Acceptance
from sluice.config.load import load_config
from sluice.errors import ConfigError


def after(kept: int, rejected: int, *, confidence: float) -> Acceptance:
    made = Acceptance(confidence=confidence, train_batch_size=1 << 20)  # so large that these verdicts count alike
    for verdict in [True] * kept + [False] * rejected:
        made.judged(kept=verdict)
    return made


def test_without_evidence_every_group_counts_as_kept_and_with_it_about_the_share() -> None:
    assert Acceptance(confidence=0.5, train_batch_size=4).most_kept(7) == 7
    assert after(1000, 3000, confidence=0.5).most_kept(100) == 25
    assert after(0, 4000, confidence=0.5).most_kept(100) == 0


def test_newer_verdicts_count_more() -> None:
    made = Acceptance(confidence=0.5, train_batch_size=8)
    for verdict in [True] * 64 + [False] * 64:
        made.judged(kept=verdict)
    assert made.most_kept(1000) < 300, "a coin would be 500; e^-1 of the memory is left"


@settings(max_examples=40)
@given(
    kept=st.integers(0, 60),
    rejected=st.integers(0, 60),
    groups=st.integers(0, 60),
    confidence=st.sampled_from([0.5, 0.75, 0.9, 0.99]),
)
def test_the_bound_is_the_quantile_of_the_beta_binomial_give_or_take_two_groups(
    kept: int, rejected: int, groups: int, confidence: float
) -> None:
    bound = after(kept, rejected, confidence=confidence).most_kept(groups)
    assert 0 <= bound <= groups
    if min(kept, rejected) < 5:  # the normal distribution stands for nothing so lopsided
        return
    exact = next(most for most in range(groups + 1) if _at_most(most, groups, 1.0 + kept, 0.0 + rejected) >= confidence)
    assert abs(bound - exact) <= 2


def _at_most(most: int, groups: int, a: float, b: float) -> float:
    """The chance of at most `most` kept ones of `groups`, beta-binomial, term by term."""

    def log_beta(x: float, y: float) -> float:
        return math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y)

    return 1e-9 + sum(
        math.comb(groups, k) * math.exp(log_beta(k + a, groups - k + b) - log_beta(a, b)) for k in range(most + 1)
    )


def test_it_is_off_by_default_and_a_recipe_that_cannot_use_it_is_refused_by_name() -> None:
    base = ["model.path=m", "data.train_files=[a.jsonl]"]
    assert Acceptance.of(load_config(None, overrides=base)) is None
    assert Acceptance.of(load_config(None, overrides=[*base, "coordinator.refill_confidence=0.9"])) is not None
    for more, why in {
        "coordinator.max_staleness=0": "while coordinator.max_staleness is 0, got 0.9; data.gen_batch_size says",
        "algorithm.filter_groups.enable=false": "while algorithm.filter_groups.enable is false, got 0.9; no group is",
        "coordinator.refill_confidence=0.4": "refill_confidence: must be >= 0.5, got 0.4",
    }.items():
        with pytest.raises(ConfigError, match=why):
            load_config(None, overrides=[*base, "coordinator.refill_confidence=0.9", more])
