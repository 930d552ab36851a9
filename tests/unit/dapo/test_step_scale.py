"""Effective samples, and the step that they allow (arXiv:2602.17616)."""

import math

import numpy as np
import pytest

from sluice.dapo.step_scale import ess_step_scale


def test_the_step_is_the_root_of_the_share_of_effective_samples() -> None:
    # weights 1, 1, 2: ESS = 16 / 6, of 3
    assert ess_step_scale(np.log([1.0, 1.0, 2.0])) == pytest.approx(math.sqrt(16 / 6 / 3))
    assert ess_step_scale(np.zeros(5)) == 1.0
    assert ess_step_scale(np.array([-3.0])) == 1.0


def test_a_sample_that_outweighs_all_others_leaves_the_step_of_one_of_them() -> None:
    assert ess_step_scale(np.array([900.0, 0.0, 0.0, -900.0])) == pytest.approx(0.5)


def test_a_factor_common_to_all_weights_changes_nothing() -> None:
    weights = np.array([0.3, -1.0, 2.0])
    assert ess_step_scale(weights + 300) == pytest.approx(ess_step_scale(weights))


@pytest.mark.parametrize("weights", [[], [[0.0, 1.0]]])
def test_weights_that_are_no_vector_are_refused(weights: list[float]) -> None:
    with pytest.raises(ValueError, match="vector of one or more"):
        ess_step_scale(np.array(weights))
