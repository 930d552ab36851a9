"""A batch from the wire: messages in, arrays out, contradictions refused. And the record of trained steps, to the wire."""

from collections.abc import Sequence

import numpy as np

from services.learner.batches.batch import Batch, TrainGroup, TrainSequence
from services.learner.checkpoint.training_record import TrainedBatch
from sluice.errors import InvalidRequest, TransferError
from sluice.rpc.arrays import unpack_floats, unpack_ids
from sluice.run_dir.batch_file import digest_of
from sluice.run_dir.stored_group import StoredGroups
from sluice.v1 import common_pb2, coordinator_pb2

_FINISHED = (common_pb2.FINISH_REASON_STOP, common_pb2.FINISH_REASON_LENGTH)
_GRADED = (common_pb2.REWARD_STATUS_OK, common_pb2.REWARD_STATUS_UNPARSED)


def batch_from_wire(header: coordinator_pb2.BatchHeader, payloads: Sequence[bytes], *, vocabulary: int) -> Batch:
    """A batch of stored groups, whose token ids must be below `vocabulary`.

    Raises TransferError when the payloads do not have the assigned batch's digest; ValueError, with group and sample, when
    the batch could not be trained correctly.
    """
    if len(payloads) != header.groups:
        raise InvalidRequest(f"batch {header.step}: {header.groups} groups were announced, {len(payloads)} came")
    if (digest := digest_of(payloads)) != header.digest:
        raise TransferError(
            f"batch {header.step}: what came has digest {digest[:12]}, the batch that was assigned {header.digest[:12]}; "
            "its file in the run directory or the connection is damaged"
        )
    stored = StoredGroups()
    groups = tuple(_group(stored.unpack(payload), vocabulary=vocabulary) for payload in payloads)
    return Batch(step=header.step, digest=header.digest, groups=groups)


def trained_to_wire(batch: TrainedBatch) -> coordinator_pb2.TrainedStep:
    """One step of the record in a registration."""
    return coordinator_pb2.TrainedStep(
        step=batch.step,
        batch_digest=batch.digest,
        group_ids=batch.group_ids,
        version=common_pb2.PolicyVersion(lineage=batch.lineage, number=batch.step + 1),
        weights_digest=batch.weights_digest,
        committed=batch.committed,
    )


def _group(message: common_pb2.Group, *, vocabulary: int) -> TrainGroup:
    if len(message.samples) != len(message.rewards):
        raise InvalidRequest(
            f"group {message.group_id}: {len(message.samples)} samples but {len(message.rewards)} rewards"
        )
    prompt = unpack_ids(message.prompt.token_ids)
    sequences = []
    for sample, reward in zip(message.samples, message.rewards, strict=True):
        try:
            sequences.append(_sequence(prompt, sample, reward))
            _check_ids(sequences[-1].token_ids, vocabulary=vocabulary)
        except ValueError as error:
            raise InvalidRequest(f"group {message.group_id}, sample {sample.index}: {error}") from error
    return TrainGroup(group_id=message.group_id, sequences=tuple(sequences))


def _sequence(prompt: np.ndarray, sample: common_pb2.Sample, reward: common_pb2.SampleReward) -> TrainSequence:
    if sample.finish_reason not in _FINISHED:
        raise ValueError(f"finish_reason: must be STOP or LENGTH, got {sample.finish_reason}")
    if reward.status not in _GRADED:
        raise ValueError(f"reward: was not graded (status {reward.status}); its score means nothing")
    completion = unpack_ids(sample.token_ids)
    return TrainSequence(
        token_ids=np.concatenate([prompt, completion]),
        prompt_tokens=len(prompt),
        rollout_logprobs=unpack_floats(sample.logprobs),
        versions=_versions(sample.spans, tokens=len(completion)),
        reward=reward.shaped_reward,
        truncated=sample.finish_reason == common_pb2.FINISH_REASON_LENGTH,
    )


def _check_ids(token_ids: np.ndarray, *, vocabulary: int) -> None:
    """Refuses ids that the embedding does not have: on a CUDA device they would end the process without a word."""
    outside = token_ids[(token_ids < 0) | (token_ids >= vocabulary)]
    if len(outside):
        raise ValueError(f"token_ids: must be 0 to {vocabulary - 1}, the ids of the model, got {outside[0]}")


def _versions(spans: Sequence[common_pb2.VersionSpan], *, tokens: int) -> np.ndarray:
    """int32[tokens]: the version of each token. The spans must cover all tokens, in order and without gaps."""
    versions = np.empty(tokens, np.int32)
    covered = 0
    for span in spans:
        if span.start_token != covered or span.end_token < covered:
            raise ValueError(f"spans: must be without gaps, got [{span.start_token}, {span.end_token}) after {covered}")
        versions[covered : span.end_token] = span.version.number
        covered = span.end_token
    if covered != tokens:
        raise ValueError(f"spans: must cover the {tokens} completion tokens, they cover {covered}")
    return versions
