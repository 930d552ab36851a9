"""A batch as four flat vectors, and back: how rank 0 gives it to the others without pickling anything."""

import numpy as np

from services.learner.batch import Batch, TrainGroup, TrainSequence
from services.learner.ranks import Ranks

_FACTS = 4
"""Integers a sequence: its group's position, P, T, truncated."""


def share_batch(ranks: Ranks, batch: Batch | None) -> Batch:
    """The leader's batch on every rank; followers give None."""
    if ranks.size == 1:
        assert batch is not None
        return batch
    texts = [str(batch.step), batch.digest, *(group.group_id for group in batch.groups)] if batch else []
    step, digest, *group_ids = ranks.share_texts(texts)
    facts = ranks.share_array(_facts(batch) if batch else None, dtype=np.int32).reshape(-1, _FACTS)
    rewards = ranks.share_array(np.array([s.reward for s in batch.sequences]) if batch else None, dtype=np.float64)
    tokens = ranks.share_array(_joined(batch, "token_ids", np.int32) if batch else None, dtype=np.int32)
    versions = ranks.share_array(_joined(batch, "versions", np.int32) if batch else None, dtype=np.int32)
    logprobs = ranks.share_array(_joined(batch, "behaviour_logprobs", np.float32) if batch else None, dtype=np.float32)
    return _rebuild(int(step), digest, group_ids, facts, rewards, tokens, versions, logprobs)


def _facts(batch: Batch) -> np.ndarray:
    return np.array(
        [
            (position, s.prompt_tokens, s.completion_tokens, s.truncated)
            for position, group in enumerate(batch.groups)
            for s in group.sequences
        ],
        np.int32,
    ).reshape(-1)


def _joined(batch: Batch, field: str, dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate([getattr(s, field) for s in batch.sequences]).astype(dtype)


def _rebuild(
    step: int,
    digest: str,
    group_ids: list[str],
    facts: np.ndarray,
    rewards: np.ndarray,
    tokens: np.ndarray,
    versions: np.ndarray,
    logprobs: np.ndarray,
) -> Batch:
    prompts, completions = facts[:, 1], facts[:, 2]
    token_parts = np.split(tokens, np.cumsum(prompts + completions)[:-1])
    version_parts = np.split(versions, np.cumsum(completions)[:-1])
    logprob_parts = np.split(logprobs, np.cumsum(completions)[:-1])
    members: list[list[TrainSequence]] = [[] for _ in group_ids]
    for index, (position, prompt_tokens, _, truncated) in enumerate(facts.tolist()):
        members[position].append(
            TrainSequence(
                token_ids=token_parts[index],
                prompt_tokens=prompt_tokens,
                behaviour_logprobs=logprob_parts[index],
                versions=version_parts[index],
                reward=float(rewards[index]),
                truncated=bool(truncated),
            )
        )
    groups = tuple(
        TrainGroup(group_id=name, sequences=tuple(part)) for name, part in zip(group_ids, members, strict=True)
    )
    return Batch(step=step, digest=digest, groups=groups)
