"""A batch from the wire: messages in, arrays out, contradictions refused. And the record of trained steps, to the wire."""

from collections.abc import Sequence

import numpy as np

from services.learner.batches.batch import Batch, TrainGroup, TrainSequence
from services.learner.checkpoint.training_record import TrainedBatch
from sluice.errors import InvalidRequest, TransferError
from sluice.rpc.arrays import unpack_floats, unpack_ids
from sluice.run_dir.batch_file import digest_of
from sluice.run_dir.stored_group import StoredGroups
from sluice.run_dir.token_figures import TokenFigures, pack_figures
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
    traceparents = tuple(header.traceparents[: len(groups)])
    return Batch(step=header.step, digest=header.digest, groups=groups, traceparents=traceparents)


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


def figures_to_wire(figures: TokenFigures) -> coordinator_pb2.TokenFigures:
    """The tokens of one group in a commit."""
    return coordinator_pb2.TokenFigures(
        group_id=figures.group_id,
        log_ratios=pack_figures(figures.log_ratios),
        entropies=pack_figures(figures.entropies),
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
            of_sample = _sequences(prompt, sample, reward)
            for sequence in of_sample:
                _check_ids(sequence.token_ids, vocabulary=vocabulary)
            sequences += of_sample
        except ValueError as error:
            raise InvalidRequest(f"group {message.group_id}, sample {sample.index}: {error}") from error
    return TrainGroup(group_id=message.group_id, sequences=tuple(sequences))


def _sequences(prompt: np.ndarray, sample: common_pb2.Sample, reward: common_pb2.SampleReward) -> list[TrainSequence]:
    """The sequences of one sample: one, or of an episode one for each history that its template made."""
    if sample.finish_reason not in _FINISHED:
        raise ValueError(f"finish_reason: must be STOP or LENGTH, got {sample.finish_reason}")
    if reward.status not in _GRADED:
        raise ValueError(f"reward: was not graded (status {reward.status}); its score means nothing")
    completion, logprobs = unpack_ids(sample.token_ids), unpack_floats(sample.logprobs)
    if len(logprobs) != len(completion):
        raise ValueError(
            f"rollout_logprobs: must have one value a completion token ({len(completion)}), got {len(logprobs)}"
        )
    sampled = _sampled(sample.turns, tokens=len(completion))
    versions = _versions(sample.spans, sampled=sampled)
    sequences: list[TrainSequence] = []
    for context, start, end in _parts(prompt, sample.turns, tokens=len(completion)):
        kept = sampled[start:end]
        sequences.append(
            TrainSequence(
                token_ids=np.concatenate([context, completion[start:end]]),
                prompt_tokens=len(context),
                rollout_logprobs=logprobs[start:end][kept],
                versions=versions[start:end][kept],
                reward=reward.shaped_reward,
                truncated=sample.finish_reason == common_pb2.FINISH_REASON_LENGTH,
                observed=None if kept.all() else ~kept,
                continues=bool(sequences),
                acc=reward.acc,
            )
        )
    return sequences


def _sampled(turns: Sequence[common_pb2.Turn], *, tokens: int) -> np.ndarray:
    """bool[tokens]: which tokens the policy sampled; all of them where there are no turns.

    Raises ValueError for turns out of order, empty or beyond the completion, and for observed tokens outside two turns of one
    sequence.
    """
    if not turns:
        return np.ones(tokens, np.bool_)
    sampled, reached = np.zeros(tokens, np.bool_), 0
    for turn in turns:
        where = f"turns: [{turn.start_token}, {turn.end_token}) after {reached}"
        if not reached <= turn.start_token < turn.end_token <= tokens:
            raise ValueError(f"{where} of {tokens} completion tokens: must be in order and have tokens")
        if turn.start_token > reached and (reached == 0 or turn.context_token_ids):
            raise ValueError(f"{where}: no observed tokens may stand before the first turn of a sequence")
        sampled[turn.start_token : turn.end_token] = True
        reached = turn.end_token
    if reached != tokens:
        raise ValueError(f"turns: must end with the {tokens} completion tokens, they end after {reached}")
    return sampled


def _parts(prompt: np.ndarray, turns: Sequence[common_pb2.Turn], *, tokens: int) -> list[tuple[np.ndarray, int, int]]:
    """(prompt, start, end) of each sequence of a sample, by turns that begin with a context of their own.

    An agent may begin an episode otherwise than the group's other ones, so the first turn may have one as well.
    """
    begins = [(turn.start_token, unpack_ids(turn.context_token_ids)) for turn in turns if turn.context_token_ids]
    starts = begins if turns and turns[0].context_token_ids else [(0, prompt), *begins]
    ends = [start for start, _ in starts[1:]] + [tokens]
    return [(context, start, end) for (start, context), end in zip(starts, ends, strict=True)]


def _check_ids(token_ids: np.ndarray, *, vocabulary: int) -> None:
    """Refuses ids that the embedding does not have: on a CUDA device they would end the process without a word."""
    outside = token_ids[(token_ids < 0) | (token_ids >= vocabulary)]
    if len(outside):
        raise ValueError(f"token_ids: must be 0 to {vocabulary - 1}, the ids of the model, got {outside[0]}")


def _versions(spans: Sequence[common_pb2.VersionSpan], *, sampled: np.ndarray) -> np.ndarray:
    """int32[T]: the version of each token, -1 for observed ones. The spans must cover the sampled tokens alone, in order."""
    versions, covered = np.full(len(sampled), -1, np.int32), 0
    for span in spans:
        between = sampled[covered : span.start_token]
        if span.start_token < covered or span.end_token < span.start_token or between.any():
            raise ValueError(f"spans: must be without gaps, got [{span.start_token}, {span.end_token}) after {covered}")
        if not sampled[span.start_token : span.end_token].all():
            raise ValueError(f"spans: [{span.start_token}, {span.end_token}) covers tokens that were observed")
        versions[span.start_token : span.end_token] = span.version.number
        covered = span.end_token
    if covered != len(sampled):
        raise ValueError(f"spans: must cover the {len(sampled)} completion tokens, they cover {covered}")
    return versions
