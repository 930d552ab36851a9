"""Answers of rollouts and rewards, checked: the one place where a peer's answer becomes a value that may be recorded.

An answer that breaks the contract (protos/sluice/v1) raises WrongAnswer with the member's name. Such an answer is a failed
attempt of the member, not of the group. Groups that were recorded once are read by messages.py, without these checks.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from services.coordinator.state.group import Reward, Sample
from services.coordinator.state.member import Member
from services.coordinator.state.ports import WrongAnswer
from services.coordinator.wire.messages import reward_from, sample_from
from sluice.environments import Score
from sluice.errors import SluiceError
from sluice.limits import LARGEST_SCORE, MOST_PARTS, NAME_CHARACTERS, PART_CHARACTERS, TEXT_CHARACTERS
from sluice.policy_version import PolicyVersion
from sluice.v1 import common_pb2 as pb
from sluice.v1 import reward_pb2, rollout_pb2

LARGEST_LOGPROB_NATS: Final = 1e-3
"""A log-probability is at most 0; engines that work in bfloat16 or float32 round a certain token to slightly more."""
SMALLEST_LOGPROB_NATS: Final = -1e4
"""No engine draws a token of probability exp(-10,000): float32 ends at exp(-104)."""
CHARACTERS_A_TOKEN: Final = 1_024
"""Longest text of one token. Chosen: the longest tokens of published vocabularies are runs of some hundred blanks."""
LONGEST_MS: Final = 1e9
"""Longest duration that a member may state: eleven days."""

_UINT32: Final = np.dtype("<u4")
_FINISH_REASONS = frozenset(pb.FinishReason.values()) - {pb.FINISH_REASON_UNSPECIFIED}
_TEXTS: Final = (
    ("extracted", TEXT_CHARACTERS),
    ("detail", TEXT_CHARACTERS),
    ("grader", NAME_CHARACTERS),
    ("grader_version", NAME_CHARACTERS),
)
_SCORES: Final = ("raw_score", "acc", "shaped_reward", "overlong_penalty")
_STATUSES = frozenset(pb.RewardStatus.values()) - {pb.REWARD_STATUS_UNSPECIFIED}


@dataclass(kw_only=True, slots=True)
class AskedSamples:
    """One request for samples, and which of its samples have come."""

    member: Member
    oldest: PolicyVersion | None
    """The version that the rollout held when the request was made; None before the first push."""
    only: PolicyVersion | None
    """The version that all tokens must have, where the request named one."""
    missing: dict[int, int]
    """Index -> seed of the samples that have not come yet."""
    max_tokens: int
    vocabulary: int
    """Every token id is below."""

    def take(self, message: pb.Sample) -> Sample:
        """The next sample of the answer. Raises WrongAnswer."""
        who, tokens = f"{self.member.service_id}: sample {message.index}", len(message.token_ids) // 4
        if message.finish_reason not in _FINISH_REASONS:
            raise WrongAnswer(f"{who} ended for reason {message.finish_reason}", tokens=tokens)
        if message.turns or message.HasField("score"):
            raise WrongAnswer(f"{who} has turns or a score, which episodes alone have", tokens=tokens)
        try:
            sample = sample_from(message, rollout_id=self.member.service_id)
        except SluiceError as error:
            raise WrongAnswer(str(error), tokens=tokens) from error
        if fault := self._fault(sample):
            raise WrongAnswer(f"{who} {fault}", tokens=tokens)
        del self.missing[sample.index]
        return sample

    def _fault(self, sample: Sample) -> str:
        """What is wrong with a sample; empty for a good sample."""
        tokens, ids, logprobs = len(sample.token_ids), sample.token_ids, sample.logprobs
        if sample.index not in self.missing:
            return "was not asked for, or came before"
        if sample.seed != self.missing[sample.index]:
            return f"was drawn with seed {sample.seed}, not {self.missing[sample.index]}"
        if tokens > self.max_tokens:
            return f"has {tokens} tokens, at most {self.max_tokens} were asked for"
        if sample.finish_reason == "length" and tokens < self.max_tokens:
            return f"ended by its length after {tokens} tokens of {self.max_tokens}"
        if np.maximum.reduce(ids.view(_UINT32)) >= self.vocabulary:  # as unsigned, ids below 0 are the largest
            odd = int(ids[(ids < 0) | (ids >= self.vocabulary)][0])
            return f"has token id {odd}; the model's ids are 0 to {self.vocabulary - 1}"
        least, most = np.minimum.reduce(logprobs), np.maximum.reduce(logprobs)  # NaN where there is one
        if not (least >= SMALLEST_LOGPROB_NATS and most <= LARGEST_LOGPROB_NATS):
            odd = float(logprobs[~((logprobs >= SMALLEST_LOGPROB_NATS) & (logprobs <= LARGEST_LOGPROB_NATS))][0])
            return f"has log-probability {odd:g}; it must be finite and at most 0"
        if len(sample.text) > CHARACTERS_A_TOKEN * tokens:
            return f"has {len(sample.text)} characters for {tokens} tokens"
        return self._fault_of_versions(sample)

    def _fault_of_versions(self, sample: Sample) -> str:
        if any(span.start >= span.end for span in sample.spans):
            return f"has empty version spans among {len(sample.spans)}"
        versions = [span.version for span in sample.spans]
        numbers = [version.number for version in versions]
        if self.only is not None:
            wrong = [version for version in versions if version != self.only]
            return f"is stamped version {wrong[0]}; {self.only} was asked for" if wrong else ""
        member, oldest = self.member, self.oldest
        assert oldest is not None
        lineages = {version.lineage for version in versions}
        if (
            numbers != sorted(numbers)
            or numbers[0] < oldest.number
            or numbers[-1] > member.granted
            or not lineages - {oldest.lineage} <= member.lineages
        ):
            stamped = ", ".join(map(str, versions[:5]))
            return f"is stamped versions {stamped}; {oldest} to number {member.granted} were pushed to the rollout"
        return ""


def rewards_of(member: Member, answer: reward_pb2.ScoreResponse, *, given: Sequence[Score | None]) -> list[Reward]:
    """The grades of the samples; `given` has the verdict of each sample's environment, if any. Raises WrongAnswer."""
    if len(answer.results) != len(given):
        raise WrongAnswer(f"{member.service_id}: {len(answer.results)} results for {len(given)} samples")
    rewards = [_reward_of(member, index, message) for index, message in enumerate(answer.results)]
    for index, (reward, score) in enumerate(zip(rewards, given, strict=True)):
        if score is not None and reward.graded and (reward.raw_score, reward.acc) != (score.score, score.acc):
            raise WrongAnswer(
                f"{member.service_id}: the grade of sample {index} has raw_score {reward.raw_score:g} and acc "
                f"{reward.acc:g}; its environment's verdict must be kept, {score.score:g} and {score.acc:g}"
            )
    return rewards


def _reward_of(member: Member, index: int, message: pb.SampleReward) -> Reward:
    who = f"{member.service_id}: the grade of sample {index}"
    if message.status not in _STATUSES:
        raise WrongAnswer(f"{who} has status {message.status}, which no grade has")
    reward = reward_from(message, parts=_parts_of(message.parts))
    for name, most in _TEXTS:
        if len(text := getattr(reward, name)) > most:
            raise WrongAnswer(f"{who} has {len(text)} characters of {name}, at most {most} are allowed")
    if not reward.graded:
        return reward  # the scores mean nothing, and are NaN rightly
    for name in _SCORES:
        if not abs(value := getattr(reward, name)) <= LARGEST_SCORE:
            raise WrongAnswer(f"{who} has {name} {value:g}; scores must be finite and at most {LARGEST_SCORE:g}")
    for name, value in reward.parts.items():
        if not abs(value) <= LARGEST_SCORE:
            raise WrongAnswer(
                f"{who} has parts[{name!r}] {value:g}; scores must be finite and at most {LARGEST_SCORE:g}"
            )
    whole = reward.raw_score + reward.overlong_penalty
    if reward.overlong_penalty > 0 or not math.isclose(reward.shaped_reward, whole, rel_tol=1e-6, abs_tol=1e-6):
        raise WrongAnswer(
            f"{who} has shaped_reward {reward.shaped_reward:g}; it must be raw_score {reward.raw_score:g} plus "
            f"overlong_penalty {reward.overlong_penalty:g}, which must be <= 0"
        )
    return reward


def _parts_of(parts: Mapping[str, float]) -> dict[str, float]:
    return {name: parts[name] for name in sorted(parts)[:MOST_PARTS] if len(name) <= PART_CHARACTERS}


def durations_of(member: Member, answer: rollout_pb2.ApplyWeightsResponse) -> tuple[float, float]:
    """Receive and stall times of applied weights, ms. Raises WrongAnswer."""
    times = (answer.receive_ms, answer.stall_ms)
    if not all(0 <= time_ms <= LONGEST_MS for time_ms in times):
        raise WrongAnswer(f"{member.service_id}: applied weights in {times[0]:g} and {times[1]:g} ms; neither can be")
    return times
