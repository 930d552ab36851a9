"""A learner and an engine of one folder in one process: what the engine says about its samples, and what the learner says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from services.learner.batches.batch import TrainSequence
from services.learner.distributed.ranks import join_ranks
from services.learner.policy.model import load_policy
from services.learner.policy.packing import pack
from services.learner.snapshot.pack import SnapshotPacker
from services.rollout.app import make_engine
from services.rollout.engine import Engine, FinishedSample, SampleRequest
from services.rollout.model_files import read_model
from sluice.config.schema import Config
from sluice.policy_version import PolicyVersion
from sluice.weights.snapshot import Snapshot

PROMPTS = ((5, 6, 7, 8), (9, 10, 11), (12, 13, 14, 15, 16, 17))


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampled:
    """Samples, and how both sides see them."""

    token_ids: np.ndarray
    """int32[M], all samples one after the other."""
    engine: np.ndarray
    """float32[M] nats."""
    learner: np.ndarray
    """float32[M] nats."""
    sequences: list[TrainSequence]

    @property
    def difference(self) -> float:
        """The largest, in nats."""
        return float(np.abs(self.engine - self.learner).max())


class Pair:
    """The only rank, and the only engine. Close it."""

    def __init__(self, folder: Path, *, kind: str, dtype: str = "float32", tokens: int = 40) -> None:
        self._config = Config.model_validate(
            {
                "model": {"path": str(folder), "dtype": dtype},
                "data": {"train_files": ["f.jsonl"], "max_prompt_length": 32, "max_response_length": 96},
                "rollout": {"max_num_seqs": 16, "kv_cache_bytes": 32 << 20, "temperature": 1.0},
            }
        )
        self._ranks = join_ranks()
        self.engine: Engine = make_engine(self._config, read_model(folder), kind=kind)
        self.engine.version = PolicyVersion(lineage="a", number=0)  # the folder's own weights
        self.policy = load_policy(self._config, self._ranks)
        self._packer = SnapshotPacker(policy=self.policy, config=self._config, ranks=self._ranks)
        self._tokens, self._number = tokens, 0

    def sample(self, *, seed: int, samples: int = 4, prompts: int = len(PROMPTS)) -> Sampled:
        """So many completions of each of the first prompts, by the engine's weights and then by the learner's."""
        for index in range(samples * prompts):
            prompt = PROMPTS[index % prompts]
            self.engine.add(
                SampleRequest(
                    sample_id=f"{seed}-{index}",
                    prompt_token_ids=prompt,
                    seed=1000 * seed + index,
                    temperature=1.0,
                    max_tokens=self._tokens,
                )
            )
        done: dict[str, FinishedSample] = {}
        while self.engine.running:
            done |= {finished.sample_id: finished for finished in self.engine.step()}
        sequences = [self._sequence(done[f"{seed}-{i}"], PROMPTS[i % prompts]) for i in range(len(done))]
        sequences.sort(key=lambda each: -len(each.token_ids))
        return Sampled(
            token_ids=np.concatenate([each.token_ids[each.prompt_tokens :] for each in sequences]),
            engine=np.concatenate([each.rollout_logprobs for each in sequences]),
            learner=self.logprobs(sequences),
            sequences=sequences,
        )

    def logprobs(self, sequences: list[TrainSequence]) -> np.ndarray:
        """float32[M] nats by the learner's weights."""
        ones = [1.0] * len(sequences)
        packed = pack(sequences, step=0, advantages=ones, weights=ones, device=torch.device("cpu"))
        _, logprobs, _ = self.policy(packed, None)
        for module in self.policy.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # as after a backward pass
        return logprobs.numpy()

    @torch.no_grad()
    def train_a_little(self) -> None:
        """Changes every weight of the learner, routers and experts too."""
        noise = torch.Generator().manual_seed(7)
        for parameter in self.policy.parameters():
            assert isinstance(parameter, DTensor)
            shard: Any = parameter.to_local()
            shard.add_(torch.randn(shard.shape, generator=noise) * 0.1)

    def publish(self) -> Snapshot:
        """The learner's weights as its next version."""
        self._number += 1
        snapshot = self._packer.gather(PolicyVersion(lineage="a", number=self._number))
        assert snapshot is not None
        return snapshot

    def push(self, snapshot: Snapshot) -> None:
        """The engine takes the version."""
        self.engine.load_weights(snapshot.manifest, snapshot.buffer, recompute_kv=True)

    def close(self) -> None:
        self.engine.close()
        if dist.is_initialized():  # vLLM ends the process group of both
            self._ranks.leave()

    def _sequence(self, finished: FinishedSample, prompt: tuple[int, ...]) -> TrainSequence:
        return TrainSequence(
            token_ids=np.array([*prompt, *finished.token_ids], np.int32),
            prompt_tokens=len(prompt),
            rollout_logprobs=np.array(finished.logprobs, np.float32),
            versions=np.zeros(len(finished.token_ids), np.int32),
            reward=0.0,
            truncated=False,
        )
