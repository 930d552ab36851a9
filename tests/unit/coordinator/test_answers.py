"""Answers of rollouts and rewards: every field sent wrong is refused by name; good answers pass."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from services.coordinator.state.member import Member, Role
from services.coordinator.state.ports import WrongAnswer
from services.coordinator.wire.answers import AskedSamples, durations_of, rewards_of
from sluice.environments import Score
from sluice.limits import LARGEST_SCORE, MOST_PARTS, NAME_CHARACTERS, TEXT_CHARACTERS
from sluice.policy_version import PolicyVersion
from sluice.rpc.arrays import pack_floats, pack_ids
from sluice.v1 import common_pb2 as pb
from sluice.v1 import reward_pb2, rollout_pb2

VOCABULARY = 100
V3, V4 = (pb.PolicyVersion(lineage="a", number=number) for number in (3, 4))


def member() -> Member:
    made = Member(service_id="rollout-7", role=Role.ROLLOUT, address="-", incarnation="i", capacity=1, last_beat_s=0.0)
    made.version, made.granted = PolicyVersion(lineage="a", number=3), 4
    return made


def asked(**changes: Any) -> AskedSamples:
    facts: dict[str, Any] = {"member": member(), "oldest": PolicyVersion(lineage="a", number=3), "only": None}
    return AskedSamples(**facts | {"missing": {0: 11, 1: 12}, "max_tokens": 4, "vocabulary": VOCABULARY} | changes)


def sample(**changes: Any) -> pb.Sample:
    """Two tokens of version 3, one of version 4."""
    spans = [
        pb.VersionSpan(version=V3, start_token=0, end_token=2),
        pb.VersionSpan(version=V4, start_token=2, end_token=3),
    ]
    facts: dict[str, Any] = {
        "index": 1,
        "seed": 12,
        "token_ids": pack_ids([0, 99, 5]),
        "logprobs": pack_floats([0.0, -0.5, -80.0]),
        "spans": spans,
        "finish_reason": pb.FINISH_REASON_STOP,
        "text": "seven",
        "rollout_id": "calls itself otherwise",
    }
    return pb.Sample(**facts | changes)


def spans(*parts: tuple[str, int, int, int]) -> list[pb.VersionSpan]:
    return [
        pb.VersionSpan(version=pb.PolicyVersion(lineage=lineage, number=number), start_token=start, end_token=end)
        for lineage, number, start, end in parts
    ]


def test_a_good_sample_is_taken_once_under_the_name_that_the_coordinator_knows() -> None:
    request = asked()
    taken = request.take(sample())
    assert (taken.index, taken.seed, taken.rollout_id, taken.text) == (1, 12, "rollout-7", "seven")
    assert taken.token_ids.tolist() == [0, 99, 5]
    with pytest.raises(WrongAnswer, match="rollout-7: sample 1 was not asked for, or came before"):
        request.take(sample())


def test_rounding_above_zero_is_no_lie() -> None:
    asked().take(sample(logprobs=pack_floats([1e-6, 0.0, -1e-9])))


WRONG_SAMPLES: dict[str, tuple[dict[str, Any], str]] = {
    "index": ({"index": 5}, "not asked for"),
    "negative index": ({"index": -1}, "not asked for"),
    "seed": ({"seed": 11}, "seed 11, not 12"),
    "no tokens": ({"token_ids": b"", "logprobs": b"", "spans": []}, "0 tokens"),
    "torn ids": ({"token_ids": b"abc"}, "multiple of 4"),
    "torn logprobs": ({"logprobs": b"abcde"}, "multiple of 4"),
    "id of the vocabulary's size": ({"token_ids": pack_ids([0, VOCABULARY, 5])}, "token id 100; .* 0 to 99"),
    "huge id": ({"token_ids": pack_ids([0, 999_999, 5])}, "token id 999999"),
    "negative id": ({"token_ids": pack_ids([0, -1, 5])}, "token id -1"),
    "NaN": ({"logprobs": pack_floats([0.0, math.nan, -1.0])}, "log-probability nan"),
    "infinite": ({"logprobs": pack_floats([0.0, -math.inf, -1.0])}, "log-probability -inf"),
    "positive": ({"logprobs": pack_floats([0.0, 0.5, -1.0])}, "log-probability 0.5"),
    "far too small": ({"logprobs": pack_floats([0.0, -3e38, -1.0])}, "log-probability -3e"),
    "fewer logprobs": ({"logprobs": pack_floats([0.0])}, "3 tokens, 1 log-probabilities"),
    "too many tokens": (
        {"token_ids": pack_ids([1] * 5), "logprobs": pack_floats([0.0] * 5), "spans": spans(("a", 3, 0, 5))},
        "5 tokens, at most 4",
    ),
    "length before its length": ({"finish_reason": pb.FINISH_REASON_LENGTH}, "ended by its length after 3 tokens of 4"),
    "no reason": ({"finish_reason": pb.FINISH_REASON_UNSPECIFIED}, "ended for reason 0"),
    "unknown reason": ({"finish_reason": 77}, "ended for reason 77"),
    "text": ({"text": "x" * (3 * 1024 + 1)}, "3073 characters for 3 tokens"),
    "no spans": ({"spans": []}, "version spans"),
    "a gap": ({"spans": spans(("a", 3, 0, 1), ("a", 4, 2, 3))}, "version spans"),
    "an overlap": ({"spans": spans(("a", 3, 0, 2), ("a", 4, 1, 3))}, "version spans"),
    "too short": ({"spans": spans(("a", 3, 0, 2))}, "version spans"),
    "before the start": ({"spans": spans(("a", 2, 0, 3))}, "stamped versions a2; a3 to number 4"),
    "never pushed": ({"spans": spans(("a", 5, 0, 3))}, "stamped versions a5"),
    "backwards": ({"spans": spans(("a", 4, 0, 2), ("a", 3, 2, 3))}, "stamped versions a4, a3"),
    "another lineage": ({"spans": spans(("b", 3, 0, 3))}, "stamped versions b3"),
    "turns": ({"turns": [pb.Turn(end_token=3)]}, "turns or a score, which episodes alone have"),
    "a score": ({"score": pb.EpisodeScore(score=1)}, "turns or a score, which episodes alone have"),
    "an empty span": ({"spans": spans(("a", 3, 0, 0), ("a", 3, 0, 3))}, "empty version spans"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_SAMPLES.values(), ids=WRONG_SAMPLES)
def test_a_sample_with_a_wrong_field_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongAnswer, match=f"(?s)rollout-7: sample .*{message}"):
        asked().take(sample(**wrong))


def test_a_request_for_one_version_takes_only_that_version() -> None:
    request = asked(only=PolicyVersion(lineage="a", number=3))
    with pytest.raises(WrongAnswer, match="stamped version a4; a3 was asked for"):
        request.take(sample())
    request.take(sample(spans=spans(("a", 3, 0, 3))))


def grade(**changes: Any) -> pb.SampleReward:
    facts: dict[str, Any] = {"status": pb.REWARD_STATUS_OK, "raw_score": 1.0, "acc": 1.0, "grader": "g"}
    return pb.SampleReward(**facts | {"shaped_reward": 0.75, "overlong_penalty": -0.25} | changes)


def rewards(*results: pb.SampleReward, samples: int | None = None) -> Any:
    answer = reward_pb2.ScoreResponse(results=results)
    return rewards_of(member(), answer, given=[None] * (len(results) if samples is None else samples))


def test_the_verdict_of_an_environment_must_be_kept() -> None:
    kept, other = grade(), grade(raw_score=0.0, shaped_reward=-0.25)
    verdict = Score(score=1.0, acc=1.0)
    answer = reward_pb2.ScoreResponse(results=[kept, other])
    assert rewards_of(member(), answer, given=[verdict, None])[0].graded
    with pytest.raises(WrongAnswer, match="sample 1 has raw_score 0 and acc 1; its environment's verdict must be kept"):
        rewards_of(member(), answer, given=[verdict, verdict])


def test_good_grades_pass_and_an_ungraded_sample_may_have_no_scores() -> None:
    nan = math.nan
    late = grade(status=pb.REWARD_STATUS_TIMEOUT, raw_score=nan, acc=nan, shaped_reward=nan, detail="late")
    good, none = rewards(grade(), late)
    assert (good.shaped_reward, good.graded) == (0.75, True)
    assert (none.status, none.detail, none.graded) == ("timeout", "late", False)


WRONG_GRADES: dict[str, tuple[dict[str, Any], str]] = {
    "no status": ({"status": 0}, "status 0"),
    "unknown status": ({"status": 99}, "status 99"),
    "NaN": ({"raw_score": math.nan}, "raw_score nan"),
    "infinite": ({"shaped_reward": math.inf}, "shaped_reward inf"),
    "acc": ({"acc": -math.inf}, "acc -inf"),
    "squares": ({"raw_score": 1e300, "shaped_reward": 1e300}, r"raw_score 1e\+300"),
    "just too large": ({"raw_score": 2 * LARGEST_SCORE}, "raw_score 2e"),
    "penalty": ({"overlong_penalty": math.nan}, "overlong_penalty nan"),
    "a bonus for length": ({"overlong_penalty": 0.5, "shaped_reward": 1.5}, "must be <= 0"),
    "not the sum": ({"shaped_reward": 1.0}, "must be raw_score 1 plus"),
    "part": ({"parts": {"style": math.nan}}, "parts.*style.* nan"),
    "extracted": ({"extracted": "x" * (TEXT_CHARACTERS + 1)}, "characters of extracted"),
    "detail": ({"detail": "x" * (TEXT_CHARACTERS + 1)}, "characters of detail"),
    "grader": ({"grader": "x" * (NAME_CHARACTERS + 1)}, "characters of grader"),
    "version": ({"grader_version": "x" * (NAME_CHARACTERS + 1)}, "characters of grader_version"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG_GRADES.values(), ids=WRONG_GRADES)
def test_a_grade_with_a_wrong_field_is_refused_by_name(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(WrongAnswer, match=f"rollout-7: the grade of sample 1 .*{message}"):
        rewards(grade(), grade(**wrong))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_another_number_of_grades_is_refused(count: int) -> None:
    with pytest.raises(WrongAnswer, match=f"{count} results for 2 samples"):
        rewards(*[grade()] * count, samples=2)


def test_of_many_parts_the_first_are_kept_and_names_are_bounded() -> None:
    parts = {f"p{number:05}": 1.0 for number in range(10_000)} | {"a" * 10_000: 1.0}
    [kept] = rewards(grade(parts=parts))
    assert len(kept.parts) == MOST_PARTS - 1, "the long name comes first and is left out"
    assert max(map(len, kept.parts)) == 6


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, 1e30])
@pytest.mark.parametrize("field", ["receive_ms", "stall_ms"])
def test_durations_that_cannot_be_are_refused(field: str, wrong: float) -> None:
    answer = rollout_pb2.ApplyWeightsResponse(receive_ms=1.0, stall_ms=0.0)
    assert durations_of(member(), answer) == (1.0, 0.0)
    setattr(answer, field, wrong)
    with pytest.raises(WrongAnswer, match="rollout-7: applied weights in"):
        durations_of(member(), answer)


def test_every_field_of_an_answer_is_sent_wrong_here() -> None:
    """A field that is added to the protos needs its row."""

    def sent(rows: Mapping[str, tuple[dict[str, Any], str]]) -> set[str]:
        return {name for fields, _ in rows.values() for name in fields}

    assert {field.name for field in pb.Sample.DESCRIPTOR.fields} - sent(WRONG_SAMPLES) == {"rollout_id"}
    assert {field.name for field in pb.SampleReward.DESCRIPTOR.fields} == sent(WRONG_GRADES)


def test_the_largest_scores_have_finite_squares_in_float32() -> None:
    assert np.isfinite(1e6 * np.float32(LARGEST_SCORE) ** 2)
