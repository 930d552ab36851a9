"""Small things to train: a two-layer Qwen3, ragged groups, a configuration, and the reference's view of them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from services.learner.batches.batch import Batch, TrainGroup, TrainSequence
from sluice.config.schema import Config
from sluice.rpc.arrays import pack_floats, pack_ids
from sluice.v1 import common_pb2
from tests.reference_dapo import ReferenceGroup, ReferenceSample

VOCABULARY = 40


def write_tiny_model(
    path: Path, *, seed: int = 0, tied: bool = True, heads: int = 3, kv_heads: int = 1, initializer_range: float = 0.3
) -> Path:
    """A random model with weights large enough that its distributions are far from uniform."""
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=8,
        intermediate_size=32,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        initializer_range=initializer_range,
        pad_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def make_config(model: Path, /, **overrides: Mapping[str, Any]) -> Config:
    """Defaults fit for tiny batches; sections are merged over them."""
    sections: dict[str, dict[str, Any]] = {
        "model": {"path": str(model), "dtype": "float32"},
        "data": {"train_files": ["none.jsonl"], "train_batch_size": 6, "max_response_length": 16},
        "rollout": {"n": 4, "temperature": 0.7},
        "learner": {
            "mini_batch_size": 6,
            "max_tokens_per_micro_batch": 64,
            "lr": 1e-2,
            "warmup_steps": 2,
            "weight_decay": 0.01,
        },
    }
    for name, section in overrides.items():
        sections[name] = sections.get(name, {}) | dict(section)
    return Config.model_validate(sections)


def make_batch(*, step: int = 0, groups: int = 6, n: int = 4, seed: int = 0) -> Batch:
    """Ragged random groups; the token 0 (end and padding at once) stands anywhere, some samples are truncated."""
    rng = np.random.default_rng([seed, step])
    return Batch(
        step=step, digest=f"digest-{step}", groups=tuple(_group(rng, f"g{step}-{g}", n, step) for g in range(groups))
    )


def make_episodes(*, step: int = 0, groups: int = 6, n: int = 4, seed: int = 0) -> Batch:
    """Episodes: observed tokens between sampled ones, some samples in two or three sequences with prompts of their own."""
    rng = np.random.default_rng([seed, step, 17])
    plain = make_batch(step=step, groups=groups, n=n, seed=seed)
    found = []
    for group in plain.groups:
        sequences: list[TrainSequence] = []
        for sequence in group.sequences:
            sequences.append(_observing(rng, sequence))
            for _ in range(int(rng.integers(0, 3))):
                later = _sequence(rng, rng.integers(0, VOCABULARY, rng.integers(1, 12)), sequence.reward, step)
                later = dataclasses.replace(later, truncated=sequence.truncated, continues=True)
                sequences.append(_observing(rng, later))
        found.append(TrainGroup(group_id=group.group_id, sequences=tuple(sequences)))
    return dataclasses.replace(plain, groups=tuple(found))


def _observing(rng: np.random.Generator, sequence: TrainSequence) -> TrainSequence:
    observed = rng.random(sequence.completion_tokens) < 0.4
    observed[[0, -1]] = False
    return dataclasses.replace(
        sequence,
        observed=observed if observed.any() else None,
        rollout_logprobs=sequence.rollout_logprobs[~observed],
        versions=sequence.versions[~observed],
    )


def poisoned(batch: Batch) -> Batch:
    """The batch with one sample whose log-probabilities are NaN: the update with the first group is not finite."""
    first = batch.groups[0]
    nan = np.full_like(first.sequences[0].rollout_logprobs, np.nan)
    bad = dataclasses.replace(first.sequences[0], rollout_logprobs=nan)
    group = TrainGroup(group_id=first.group_id, sequences=(bad, *first.sequences[1:]))
    return dataclasses.replace(batch, groups=(group, *batch.groups[1:]))


def _group(rng: np.random.Generator, group_id: str, n: int, step: int) -> TrainGroup:
    prompt = rng.integers(0, VOCABULARY, rng.integers(1, 9))
    rewards = np.resize([1.0, 0.0, 0.3], n)
    return TrainGroup(group_id=group_id, sequences=tuple(_sequence(rng, prompt, reward, step) for reward in rewards))


def _sequence(rng: np.random.Generator, prompt: np.ndarray, reward: float, step: int) -> TrainSequence:
    completion = rng.integers(0, VOCABULARY, rng.integers(1, 17))
    return TrainSequence(
        token_ids=np.concatenate([prompt, completion]).astype(np.int32),
        prompt_tokens=len(prompt),
        rollout_logprobs=rng.normal(-3.5, 1.0, len(completion)).astype(np.float32),
        versions=np.full(len(completion), max(0, step - int(rng.integers(0, 2))), np.int32),
        reward=float(reward),
        truncated=bool(rng.random() < 0.2),
        acc=float(reward == 1.0),
    )


def as_reference(batch: Batch) -> list[ReferenceGroup]:
    """The same groups for tests/reference_dapo.py."""
    return [
        ReferenceGroup(
            prompt_ids=group.sequences[0].token_ids[: group.sequences[0].prompt_tokens].tolist(),
            samples=[_as_reference(parts) for parts in parts_of(group)],
        )
        for group in batch.groups
    ]


def parts_of(group: TrainGroup) -> list[list[TrainSequence]]:
    """The sequences of each sample."""
    parts: list[list[TrainSequence]] = []
    for sequence in group.sequences:
        parts = [*parts[:-1], [*parts[-1], sequence]] if sequence.continues else [*parts, [sequence]]
    return parts


def _as_reference(parts: list[TrainSequence]) -> ReferenceSample:
    first, *later = parts
    return ReferenceSample(
        completion_ids=first.token_ids[first.prompt_tokens :].tolist(),
        rollout_logprobs=first.rollout_logprobs.tolist(),
        reward=first.reward,
        acc=first.acc,
        truncated=first.truncated,
        sampled=None if first.observed is None else (~first.observed).tolist(),
        context_ids=first.token_ids[: first.prompt_tokens].tolist(),
        later=tuple(_as_reference([part]) for part in later),
    )


def groups_to_wire(batch: Batch) -> list[common_pb2.Group]:
    """The messages behind a batch."""
    return [
        common_pb2.Group(
            group_id=group.group_id,
            prompt=common_pb2.Prompt(
                token_ids=pack_ids(group.sequences[0].token_ids[: group.sequences[0].prompt_tokens])
            ),
            samples=[_sample(index, parts) for index, parts in enumerate(parts_of(group))],
            rewards=[
                common_pb2.SampleReward(status=common_pb2.REWARD_STATUS_OK, shaped_reward=parts[0].reward)
                for parts in parts_of(group)
            ],
        )
        for group in batch.groups
    ]


def _sample(index: int, parts: list[TrainSequence]) -> common_pb2.Sample:
    version = common_pb2.PolicyVersion(lineage="a", number=int(parts[0].versions[0]))
    sampled = np.concatenate([part.sampled for part in parts])
    logprobs = np.zeros(len(sampled), np.float32)
    logprobs[sampled] = np.concatenate([part.rollout_logprobs for part in parts])
    contexts = dict(zip(np.cumsum([part.completion_tokens for part in parts])[:-1].tolist(), parts[1:], strict=True))
    turns = [
        common_pb2.Turn(
            start_token=start,
            end_token=end,
            context_token_ids=pack_ids(contexts[start].token_ids[: contexts[start].prompt_tokens])
            if start in contexts
            else b"",
        )
        for start, end in _runs(sampled, cuts=set(contexts))
    ]
    episode = len(parts) > 1 or not sampled.all()
    spans = [(turn.start_token, turn.end_token) for turn in turns]
    return common_pb2.Sample(
        index=index,
        token_ids=pack_ids(np.concatenate([part.token_ids[part.prompt_tokens :] for part in parts])),
        logprobs=pack_floats(logprobs),
        spans=[common_pb2.VersionSpan(version=version, start_token=start, end_token=end) for start, end in spans],
        finish_reason=common_pb2.FINISH_REASON_LENGTH if parts[0].truncated else common_pb2.FINISH_REASON_STOP,
        turns=turns if episode else [],
    )


def _runs(sampled: np.ndarray, *, cuts: set[int]) -> list[tuple[int, int]]:
    """The ranges of sampled tokens, cut where a sequence begins."""
    starts = [
        place for place in np.flatnonzero(sampled).tolist() if place == 0 or not sampled[place - 1] or place in cuts
    ]
    ends = [
        place + 1
        for place in np.flatnonzero(sampled).tolist()
        if place + 1 == len(sampled) or not sampled[place + 1] or place + 1 in cuts
    ]
    return list(zip(starts, ends, strict=True))
