"""Batches from the wire."""

import numpy as np
import pytest

from services.learner.batches.batch import Batch
from services.learner.control.wire import batch_from_wire
from sluice.errors import InvalidRequest, TransferError
from sluice.rpc.arrays import pack_floats, pack_ids, unpack_ids
from sluice.run_dir.batch_file import digest_of
from sluice.run_dir.stored_group import StoredGroups
from sluice.v1 import common_pb2, coordinator_pb2
from tests.unit.learner.learner_cases import VOCABULARY, groups_to_wire, make_batch, make_episodes


def _received(groups: list[common_pb2.Group], *, digest: str = "", announced: int = 2) -> Batch:
    """What the learner makes of these groups, handed out as they are stored."""
    stored = StoredGroups()
    payloads = [stored.pack(group.SerializeToString()) for group in groups]
    digest = digest or digest_of(payloads)
    header = coordinator_pb2.BatchHeader(step=3, groups=announced, digest=digest)
    return batch_from_wire(header, payloads, vocabulary=VOCABULARY)


@pytest.mark.parametrize("where", ["prompt", "completion"])
@pytest.mark.parametrize("odd", [-1, VOCABULARY, 999_999])
def test_a_token_id_that_the_model_does_not_have_is_refused_with_group_and_sample(where: str, odd: int) -> None:
    groups = _groups()
    message = groups[1].prompt if where == "prompt" else groups[1].samples[1]
    message.token_ids = pack_ids([odd]) + message.token_ids[4:]
    said = rf"group {groups[1].group_id}, sample \d: token_ids: must be 0 to {VOCABULARY - 1}, .* got {odd}"
    with pytest.raises(InvalidRequest, match=said):
        _received(groups)


def _groups() -> list[common_pb2.Group]:
    return groups_to_wire(make_batch(step=3, groups=2))


def test_a_batch_arrives_as_it_was_sent() -> None:
    batch, sent = _received(_groups()), make_batch(step=3, groups=2)
    assert (batch.step, batch.group_sizes) == (3, sent.group_sizes)
    for ours, theirs in zip(batch.sequences, sent.sequences, strict=True):
        assert np.array_equal(ours.token_ids, theirs.token_ids)
        assert np.array_equal(ours.rollout_logprobs, theirs.rollout_logprobs)
        assert np.array_equal(ours.versions, theirs.versions)
        assert (ours.prompt_tokens, ours.reward, ours.truncated) == (
            theirs.prompt_tokens,
            theirs.reward,
            theirs.truncated,
        )


def test_episodes_arrive_as_the_sequences_that_they_were_sampled_in() -> None:
    sent = make_episodes(step=3, groups=4)
    assert any(s.continues for s in sent.sequences)
    batch = _received(groups_to_wire(sent), announced=4)
    assert batch.group_sizes == sent.group_sizes
    for ours, theirs in zip(batch.sequences, sent.sequences, strict=True):
        for name in ("token_ids", "prompt_tokens", "rollout_logprobs", "observed", "reward", "truncated", "continues"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)


def _turn(start: int, end: int, context: bytes = b"") -> common_pb2.Turn:
    return common_pb2.Turn(start_token=start, end_token=end, context_token_ids=context)


def test_an_episode_that_began_with_a_chat_of_its_own_has_that_prompt() -> None:
    groups = _groups()
    own = groups[0].samples[0]
    own.turns.append(_turn(0, len(unpack_ids(own.token_ids)), pack_ids([7, 8])))
    group = _received(groups).groups[0]
    first, second = group.sequences[:2]
    assert first.token_ids[: first.prompt_tokens].tolist() == [7, 8]
    assert not first.continues
    assert second.token_ids[: second.prompt_tokens].tolist() == unpack_ids(groups[0].prompt.token_ids).tolist()
    assert not group.one_prompt


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([_turn(0, 2), _turn(1, 6)], r"\[1, 6\) after 2 of 6 completion tokens: must be in order"),
        ([_turn(0, 2), _turn(3, 3)], "must be in order and have tokens"),
        ([_turn(0, 7)], "must be in order and have tokens"),
        ([_turn(0, 2), _turn(3, 5)], "must end with the 6 completion tokens, they end after 5"),
        ([_turn(1, 6)], "no observed tokens may stand before the first turn"),
        ([_turn(0, 2), _turn(3, 6, pack_ids([1]))], "no observed tokens may stand before the first turn"),
        ([_turn(0, 2), _turn(4, 6)], r"spans: \[0, 6\) covers tokens that were observed"),
        ([_turn(0, 3), _turn(3, 6, pack_ids([VOCABULARY]))], "token_ids: must be 0 to"),
    ],
)
def test_an_episode_that_contradicts_itself_is_refused_by_name(turns: list[common_pb2.Turn], message: str) -> None:
    groups = _groups()
    sample = groups[0].samples[0]
    sample.token_ids, sample.logprobs = pack_ids([1] * 6), pack_floats([0.0] * 6)
    sample.spans[0].end_token = 6
    sample.turns.extend(turns)
    with pytest.raises(InvalidRequest, match=f"group g3-0, sample 0: .*{message}"):
        _received(groups)


def test_each_span_stamps_its_own_tokens() -> None:
    groups = _groups()
    sample = groups[0].samples[0]
    tokens = len(sample.token_ids) // 4
    del sample.spans[:]
    for number, (start, end) in enumerate([(0, 1), (1, tokens)]):
        version = common_pb2.PolicyVersion(lineage="a", number=number)
        sample.spans.append(common_pb2.VersionSpan(version=version, start_token=start, end_token=end))
    assert _received(groups).sequences[0].versions.tolist() == [0] + [1] * (tokens - 1)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda group: group.samples[0].spans.pop(), "spans: must cover"),
        (lambda group: setattr(group.samples[0].spans[0], "start_token", 1), "without gaps"),
        (lambda group: setattr(group.samples[0], "logprobs", pack_floats([0.0])), "rollout_logprobs"),
        (lambda group: setattr(group.samples[0], "finish_reason", common_pb2.FINISH_REASON_ABORT), "finish_reason"),
        (lambda group: setattr(group.rewards[0], "status", common_pb2.REWARD_STATUS_TIMEOUT), "was not graded"),
        (lambda group: group.rewards.pop(), "4 samples but 3 rewards"),
    ],
)
def test_a_group_that_contradicts_itself_is_refused_by_name(spoil, message: str) -> None:
    groups = _groups()
    groups[0].samples[0].token_ids += b"\0\0\0\0" * 3
    groups[0].samples[0].logprobs += pack_floats([0.0] * 3)
    groups[0].samples[0].spans[0].end_token += 3
    spoil(groups[0])
    with pytest.raises(InvalidRequest, match=f"group g3-0.*{message}"):
        _received(groups)


def test_a_batch_that_is_not_whole_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="2 groups were announced, 1 came"):
        _received(_groups()[:1])


def test_a_batch_of_another_digest_is_refused() -> None:
    whole = _groups()
    digest = _received(whole).digest
    whole[1].samples[0].logprobs = bytes(len(whole[1].samples[0].logprobs))
    with pytest.raises(TransferError, match=f"the batch that was assigned {digest[:12]}"):
        _received(whole, digest=digest)


def test_a_stored_group_that_is_damaged_is_an_error_and_no_crash() -> None:
    payload = StoredGroups().pack(_groups()[0].SerializeToString())
    for damaged in (b"", b"no zstd at all", payload[:-9], payload[:20] + b"\0" + payload[21:]):
        with pytest.raises(ValueError, match="stored group"):
            StoredGroups().unpack(damaged)
