"""A checkpoint's weights as the snapshot that the run published, read in one process and without an optimizer.

Reads all shards straight into the wanted type, with the learner's rounding, so the bytes equal the published bytes. With
LoRA the snapshot holds only the adapters, float32. Peak memory is the snapshot, which is filled in place, and one shard of a
tensor as stored.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from transformers import AutoConfig, AutoModelForCausalLM

from services.learner.checkpoint.training_state import read_state
from services.learner.policy.lora import plain_name
from sluice.config.schema import Config
from sluice.errors import ConfigError, NotFound
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot

_PREFIX = "causal_lm."
"""Prefix of the model's own parameters in forward.Policy."""


def read_snapshot(path: Path, config: Config) -> Snapshot:
    """The version in the checkpoint at `path`, a folder that has been verified.

    Raises ConfigError when `model.path` is another model, NotFound when the run removes the checkpoint meanwhile.
    """
    try:
        reader = FileSystemReader(path)
        saved = {
            name.removeprefix(f"model.{_PREFIX}"): entry.size
            for name, entry in reader.read_metadata().state_dict_metadata.items()
            if name.startswith(f"model.{_PREFIX}") and isinstance(entry, TensorStorageMetadata)
        }
        adapters = config.model.lora_rank > 0
        wanted = saved if adapters else _parameters(config, saved, path)
        dtype = "float32" if adapters else config.model.dtype
        named = [(plain_name(name), dtype, tuple(shape)) for name, shape in wanted.items()]
        packer = Packer(plan(named, bucket_bytes=config.weights.bucket_bytes))
        tensors = {name: _room(packer, plain_name(name), shape, dtype=dtype) for name, shape in wanted.items()}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is intended
            load_shards(
                {"model": {_PREFIX + name: t for name, t in tensors.items()}}, storage_reader=reader, no_dist=True
            )
        state = read_state(path)
    except (OSError, CheckpointException) as error:
        raise NotFound(
            f"{path}: cannot be read; if its run goes on it may have been removed, try again: {error}"
        ) from error
    return packer.seal(PolicyVersion(lineage=state.lineage, number=state.step))


def _room(packer: Packer, name: str, shape: torch.Size, *, dtype: str) -> torch.Tensor:
    """The tensor's place in the snapshot, to be filled."""
    return torch.from_numpy(packer.room(name)).view(getattr(torch, dtype)).view(shape)


def _parameters(config: Config, saved: Mapping[str, torch.Size], path: Path) -> dict[str, torch.Size]:
    """Names and shapes of the model's parameters, a tied head once. Raises ConfigError unless all of them were saved."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config.model.path))
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, shape in wanted.items():
        if saved.get(name) != shape:
            raise ConfigError(
                f"model.path: {config.model.path} must be the model that was trained; its {name} is {tuple(shape)}, "
                f"{path} has {tuple(saved[name]) if name in saved else 'none'}"
            )
    return wanted
