"""A batch as flat vectors, and back: the form in which a batch crosses ranks and lies on disk. Nothing is pickled.

Letters: S sequences, T all tokens of all sequences (prompts and completions), C all completion tokens, A all sampled tokens.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from services.learner.batches.batch import Batch, TrainGroup, TrainSequence


@dataclass(frozen=True, kw_only=True, slots=True)
class FlatBatch:
    """A batch without its step and without the ids of its groups."""

    groups: np.ndarray
    """int32[S]: position of each sequence's group."""
    prompts: np.ndarray
    """int32[S]: prompt tokens."""
    completions: np.ndarray
    """int32[S]: completion tokens."""
    truncated: np.ndarray
    """int32[S]: 0 or 1."""
    rewards: np.ndarray
    """float64[S], shaped."""
    accs: np.ndarray
    """float64[S]: 1 right, 0 wrong, NaN not known."""
    continues: np.ndarray
    """int32[S]: 1 where a sequence is of the same sample as the one before, else 0."""
    token_ids: np.ndarray
    """int32[T]."""
    observed: np.ndarray
    """int32[C]: 1 for tokens that an environment wrote, else 0."""
    versions: np.ndarray
    """int32[A]."""
    rollout_logprobs: np.ndarray
    """float32[A], nats."""


DTYPES: dict[str, type[np.generic]] = {
    field.name: {"rewards": np.float64, "accs": np.float64, "rollout_logprobs": np.float32}.get(field.name, np.int32)
    for field in fields(FlatBatch)
}


_FORMER_NAMES = {"rollout_logprobs": "behaviour_logprobs"}
"""New name -> former name of vectors in files that earlier versions wrote."""

_LENGTHS = {"continues": "prompts", "observed": "versions", "accs": "prompts"}
"""Vectors that files of earlier versions lack -> vectors of the same length: all zero there, and `accs` all NaN."""


def flatten(batch: Batch) -> FlatBatch:
    """The vectors of a batch."""
    sequences = batch.sequences
    columns = {
        "groups": np.repeat(np.arange(len(batch.groups)), batch.group_sizes),
        "prompts": [s.prompt_tokens for s in sequences],
        "completions": [s.completion_tokens for s in sequences],
        "truncated": [s.truncated for s in sequences],
        "rewards": [s.reward for s in sequences],
        "accs": [s.acc for s in sequences],
        "continues": [s.continues for s in sequences],
        "observed": np.concatenate([~s.sampled for s in sequences]),
        "token_ids": np.concatenate([s.token_ids for s in sequences]),
        "versions": np.concatenate([s.versions for s in sequences]),
        "rollout_logprobs": np.concatenate([s.rollout_logprobs for s in sequences]),
    }
    return FlatBatch(**{name: np.asarray(values, DTYPES[name]) for name, values in columns.items()})


def rebuild(flat: FlatBatch, *, step: int, digest: str, group_ids: list[str]) -> Batch:
    """The batch that `flatten` took. Raises ValueError when the vectors contradict each other."""
    token_parts = np.split(flat.token_ids, np.cumsum(flat.prompts + flat.completions)[:-1])
    observed_parts = [part.astype(np.bool_) for part in np.split(flat.observed, np.cumsum(flat.completions)[:-1])]
    sampled = np.cumsum([len(part) - int(part.sum()) for part in observed_parts])
    version_parts = np.split(flat.versions, sampled[:-1])
    logprob_parts = np.split(flat.rollout_logprobs, sampled[:-1])
    members: list[list[TrainSequence]] = [[] for _ in group_ids]
    for index, position in enumerate(flat.groups.tolist()):
        members[position].append(
            TrainSequence(
                token_ids=token_parts[index],
                prompt_tokens=int(flat.prompts[index]),
                rollout_logprobs=logprob_parts[index],
                versions=version_parts[index],
                reward=float(flat.rewards[index]),
                truncated=bool(flat.truncated[index]),
                observed=observed_parts[index] if observed_parts[index].any() else None,
                continues=bool(flat.continues[index]),
                acc=float(flat.accs[index]),
            )
        )
    groups = tuple(
        TrainGroup(group_id=name, sequences=tuple(part)) for name, part in zip(group_ids, members, strict=True)
    )
    return Batch(step=step, digest=digest, groups=groups)


def write_batch(batch: Batch, path: Path) -> None:
    """Writes a NumPy archive (.npz) that `read_batch` and plain numpy read. Raises OSError."""
    flat = flatten(batch)
    np.savez_compressed(
        path,
        allow_pickle=False,
        step=batch.step,
        digest=batch.digest,
        group_ids=np.array([group.group_id for group in batch.groups]),
        **{name: getattr(flat, name) for name in DTYPES},
    )


def read_batch(path: Path) -> Batch:
    """The batch in a file that `write_batch` of this or an earlier version wrote. Raises OSError or ValueError."""
    with np.load(path, allow_pickle=False) as stored:
        flat = FlatBatch(**{name: _vector(stored, name) for name in DTYPES})
        step, digest, group_ids = int(stored["step"]), str(stored["digest"]), stored["group_ids"].tolist()
    return rebuild(flat, step=step, digest=digest, group_ids=group_ids)


def _vector(stored: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if name not in stored and name in _LENGTHS:
        return np.full(len(stored[_LENGTHS[name]]), np.nan if name == "accs" else 0, DTYPES[name])
    return stored[name if name in stored else _FORMER_NAMES[name]]
