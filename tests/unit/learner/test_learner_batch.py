"""What a batch may hold."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from services.learner.batches.batch import Batch, TrainGroup, TrainSequence, advantages
from tests.unit.learner.learner_cases import make_batch


def test_a_sequence_without_one_logprob_a_completion_token_is_refused() -> None:
    sequence = make_batch().sequences[0]
    with pytest.raises(ValueError, match="rollout_logprobs: must have one value a completion token"):
        dataclasses.replace(sequence, rollout_logprobs=sequence.rollout_logprobs[:-1])


def test_a_sequence_whose_versions_do_not_cover_it_is_refused() -> None:
    sequence = make_batch().sequences[0]
    with pytest.raises(ValueError, match="versions: must have one value"):
        dataclasses.replace(sequence, versions=np.append(sequence.versions, 0))


@pytest.mark.parametrize(("prompt_tokens", "message"), [(0, "prompt"), (10_000, "completion")])
def test_a_sequence_needs_a_prompt_and_a_completion(prompt_tokens: int, message: str) -> None:
    sequence = make_batch().sequences[0]
    prompt_tokens = min(prompt_tokens, len(sequence.token_ids))
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(sequence, prompt_tokens=prompt_tokens)


def test_a_group_knows_whether_its_sequences_share_one_prompt() -> None:
    first, second = make_batch().groups[:2]
    assert first.one_prompt
    assert not TrainGroup(group_id="mixed", sequences=(first.sequences[0], second.sequences[0])).one_prompt


def test_the_sequences_of_one_sample_share_its_advantage_and_count_once() -> None:
    one, other = make_batch(groups=1, n=2).groups[0].sequences  # rewards 1 and 0
    later = dataclasses.replace(one, token_ids=other.token_ids[::-1].copy(), **_facts(other), continues=True)
    group = TrainGroup(group_id="g", sequences=(one, later, later, other))
    assert advantages([group], norm_by_std=False).tolist() == [0.5, 0.5, 0.5, -0.5]
    with pytest.raises(ValueError, match="first sequence continues nothing"):
        TrainGroup(group_id="g", sequences=(later, other))
    with pytest.raises(ValueError, match="sequences of one sample have different rewards or ends"):
        TrainGroup(group_id="g", sequences=(one, dataclasses.replace(later, reward=7.0)))


def _facts(sequence: TrainSequence) -> dict[str, Any]:
    names = ("prompt_tokens", "rollout_logprobs", "versions")
    return {name: getattr(sequence, name) for name in names}


@pytest.mark.parametrize(("place", "message"), [(0, "first and the last"), (-1, "first and the last")])
def test_a_sequence_begins_and_ends_with_a_sampled_token(place: int, message: str) -> None:
    sequence = make_batch(groups=3).sequences[0]
    observed = np.zeros(sequence.completion_tokens, np.bool_)
    observed[place] = True
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(sequence, observed=observed)


def test_tokens_of_a_version_that_the_step_has_yet_to_make_are_refused() -> None:
    batch = make_batch(step=3)
    with pytest.raises(ValueError, match="batch 1: has tokens of version"):
        Batch(step=1, digest="", groups=batch.groups)


def test_advantages_follow_the_order_of_the_sequences_and_sum_to_zero_in_each_group() -> None:
    batch = make_batch(groups=3, n=4)
    values = advantages(batch.groups, norm_by_std=False).reshape(3, 4)
    assert np.allclose(values.sum(axis=1), 0)
    assert np.allclose(values[0], np.array([1, 0, 0.3, 1]) - 0.575)
