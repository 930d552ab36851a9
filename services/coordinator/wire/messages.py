"""Between the coordinator's dataclasses and the wire: samples, rewards, groups (compressed for queue and files)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from services.coordinator.prompts.render import Prompt
from services.coordinator.state.group import Group, GroupFailed, QueuedGroup, Reward, Sample, Span
from services.coordinator.state.learner_history import Statement, TrainedStep
from services.coordinator.state.ledger_row import accepted_group
from services.coordinator.wire.turns import FINISH, FINISH_OF, fault_of_cover, turn_from, turn_to
from sluice.errors import InvalidRequest, SluiceError
from sluice.limits import MAX_MESSAGE_BYTES
from sluice.report.turns import turn_records
from sluice.rpc.arrays import pack_floats, pack_ids, unpack_floats, unpack_ids
from sluice.rpc.chat_messages import score_from, score_to
from sluice.rpc.policy_versions import version_from_proto, version_to_proto
from sluice.run_dir.stored_group import StoredGroups
from sluice.v1 import common_pb2 as pb
from sluice.v1 import coordinator_pb2

LARGEST_GROUP_BYTES = MAX_MESSAGE_BYTES - 64
"""GetBatch sends one group a message; 64 bytes are for the frame around the group. Redis would take twice as much."""

_STATUS = {
    pb.REWARD_STATUS_OK: "ok",
    pb.REWARD_STATUS_UNPARSED: "unparsed",
    pb.REWARD_STATUS_TIMEOUT: "timeout",
    pb.REWARD_STATUS_ERROR: "error",
}
_STATUS_OF = {name: value for value, name in _STATUS.items()}


def statement_from(message: coordinator_pb2.RegisterRequest) -> Statement:
    """Wire -> core. Raises InvalidRequest when the steps do not fit together."""
    steps = [
        TrainedStep(
            step=step.step,
            batch_digest=step.batch_digest,
            group_ids=tuple(step.group_ids),
            version=version_from_proto(step.version),
            weights_digest=step.weights_digest,
            committed=step.committed,
        )
        for step in message.trained
    ]
    return Statement(version=version_from_proto(message.version), steps=steps)


def sample_from(message: pb.Sample, *, rollout_id: str = "") -> Sample:
    """Wire -> core, under the name `rollout_id` if given. Raises SluiceError when arrays or spans do not fit together."""
    rollout_id = rollout_id or message.rollout_id
    try:
        ids, logprobs = unpack_ids(message.token_ids), unpack_floats(message.logprobs)
        turns = tuple(turn_from(turn) for turn in message.turns)
    except InvalidRequest as error:
        raise SluiceError(f"{rollout_id}: sample {message.index}: {error}") from error
    spans = tuple(
        Span(version=version_from_proto(span.version), start=span.start_token, end=span.end_token)
        for span in message.spans
    )
    fault = fault_of_cover(spans, turns, tokens=len(ids))
    if fault or len(ids) == 0 or len(ids) != len(logprobs):
        raise SluiceError(
            f"{rollout_id}: sample {message.index} has {len(ids)} tokens, {len(logprobs)} log-probabilities "
            f"and {fault or 'spans'}; they must cover the sampled tokens one to one"
        )
    return Sample(
        index=message.index,
        token_ids=ids,
        logprobs=logprobs,
        spans=spans,
        finish_reason=FINISH.get(message.finish_reason, "error"),
        text=message.text,
        rollout_id=rollout_id,
        seed=message.seed,
        turns=turns,
        score=score_from(message.score) if message.HasField("score") else None,
    )


def reward_from(message: pb.SampleReward, *, parts: Mapping[str, float] | None = None) -> Reward:
    """Wire -> core, with other `parts` if given."""
    return Reward(
        status=_STATUS.get(message.status, "error"),
        raw_score=message.raw_score,
        acc=message.acc,
        extracted=message.extracted,
        shaped_reward=message.shaped_reward,
        overlong_penalty=message.overlong_penalty,
        grader=message.grader,
        grader_version=message.grader_version,
        detail=message.detail,
        parts=dict(message.parts) if parts is None else parts,
    )


def group_from(message: pb.Group) -> Group:
    """Wire -> core; the message lacks the group's admission and attempts."""
    prompt = message.prompt
    return Group(
        group_id=message.group_id,
        admission=message.admission,
        prompt=Prompt(
            prompt_id=prompt.prompt_id,
            data_source=prompt.data_source,
            token_ids=unpack_ids(prompt.token_ids),
            text=prompt.text,
            ground_truth=prompt.ground_truth,
            extra_info_json=prompt.extra_info_json,
            environment=prompt.environment,
            environment_args_json=prompt.environment_args_json,
        ),
        cursor="",
        attempt=message.attempt,
        samples={sample.index: sample_from(sample) for sample in message.samples},
        rewards=[reward_from(reward) for reward in message.rewards],
    )


def group_to(group: Group) -> pb.Group:
    """Core -> wire."""
    message = _group_without_samples(group)
    message.samples.extend(_sample_to(group.samples[index]) for index in sorted(group.samples))
    message.rewards.extend(map(_reward_to, group.rewards))
    return message


def group_bytes(group: Group) -> bytes:
    """`group_to`, serialised; the same bytes. Made sample by sample, as messages merge where their bytes are joined: every
    buffer of a large group's size costs a copy, and memory that the kernel hands out anew."""
    pieces = [_group_without_samples(group).SerializeToString()]
    pieces += [
        pb.Group(samples=[_sample_to(group.samples[index])]).SerializeToString() for index in sorted(group.samples)
    ]
    pieces.append(pb.Group(rewards=map(_reward_to, group.rewards)).SerializeToString())
    return b"".join(pieces)


def _group_without_samples(group: Group) -> pb.Group:
    prompt = group.prompt
    return pb.Group(
        group_id=group.group_id,
        admission=group.admission,
        attempt=group.attempt,
        prompt=pb.Prompt(
            prompt_id=prompt.prompt_id,
            data_source=prompt.data_source,
            token_ids=pack_ids(prompt.token_ids),
            text=prompt.text,
            ground_truth=prompt.ground_truth,
            extra_info_json=prompt.extra_info_json,
            environment=prompt.environment,
            environment_args_json=prompt.environment_args_json,
        ),
    )


def finish_to(reason: str) -> "pb.FinishReason.ValueType":
    """Core -> wire."""
    return FINISH_OF[reason]


def _sample_to(sample: Sample) -> pb.Sample:
    return pb.Sample(
        index=sample.index,
        token_ids=pack_ids(sample.token_ids),
        logprobs=pack_floats(sample.logprobs),
        spans=[
            pb.VersionSpan(version=version_to_proto(span.version), start_token=span.start, end_token=span.end)
            for span in sample.spans
        ],
        finish_reason=FINISH_OF[sample.finish_reason],
        text=sample.text,
        rollout_id=sample.rollout_id,
        seed=sample.seed,
        turns=[turn_to(turn) for turn in sample.turns],
        score=None if sample.score is None else score_to(sample.score),
    )


def _reward_to(reward: Reward) -> pb.SampleReward:
    return pb.SampleReward(
        status=_STATUS_OF[reward.status],
        raw_score=reward.raw_score,
        acc=reward.acc,
        extracted=reward.extracted,
        shaped_reward=reward.shaped_reward,
        overlong_penalty=reward.overlong_penalty,
        grader=reward.grader,
        grader_version=reward.grader_version,
        detail=reward.detail,
        parts=reward.parts,
    )


class ZstdGroups:
    """Groups as bytes for queue and batch files (GroupCodec of state/ports.py)."""

    def __init__(self) -> None:
        self._stored = StoredGroups()

    def encode(self, group: Group) -> bytes:
        """A compressed, self-contained group. Raises GroupFailed for a group that does not fit a message to the learner."""
        body = group_bytes(group)
        if len(body) > LARGEST_GROUP_BYTES:
            raise GroupFailed(
                reason="too_large",
                fault=f"{group.group_id} has {len(body)} bytes with its texts, a message to the learner takes "
                f"{LARGEST_GROUP_BYTES}; lower rollout.n or data.max_response_length, or shorten extra_info of the prompt",
            )
        return self._stored.pack(body)

    def decode(self, payload: bytes) -> pb.Group:
        """The message behind a payload."""
        return self._stored.unpack(payload)

    def to_read(self, payload: bytes) -> dict[str, Any]:
        """The group's id, prompt, completions and scores, for people: a line of samples.jsonl."""
        group = self.decode(payload)
        return {
            "group_id": group.group_id,
            "prompt": group.prompt.text,
            "samples": [
                {
                    "text": sample.text,
                    "raw_score": reward.raw_score,
                    "shaped_reward": reward.shaped_reward,
                    "acc": reward.acc,
                    "finish_reason": FINISH[sample.finish_reason],
                    "tokens": _sampled(sample),
                    **({"turns": turn_records(sample)} if sample.turns else {}),
                }
                for sample, reward in zip(group.samples, group.rewards, strict=True)
            ],
        }

    def newest_version(self, payload: bytes) -> int:
        """The number of the newest version that sampled a token of the group."""
        return max(span.version.number for sample in self.decode(payload).samples for span in sample.spans)

    def accepted(self, payload: bytes) -> QueuedGroup:
        """The facts of a group in a batch file, which are all but its admission and its attempts."""
        accepted = accepted_group(group_from(self.decode(payload)), payload_bytes=0)
        return replace(accepted, life={name: value for name, value in accepted.life.items() if name != "attempts"})


def _sampled(sample: pb.Sample) -> int:
    turns = sample.turns
    return sum(turn.end_token - turn.start_token for turn in turns) if turns else len(unpack_ids(sample.token_ids))
