"""A checkpoint's weights as the snapshot that the run published, read in one process and without an optimizer.

Reads all shards straight into the wanted type, with the learner's rounding, so the bytes equal the published bytes. With
LoRA the snapshot holds only the adapters, float32. Peak memory is the snapshot, which is filled in place, one shard of a
tensor as stored, and one parameter that is several tensors of the files (a layer's experts).
"""

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from transformers import AutoConfig, AutoModelForCausalLM

from services.learner.checkpoint.training_state import read_state
from services.learner.policy.lora import plain_name
from services.learner.policy.stored_model import published_form
from sluice.config.schema import Config
from sluice.errors import ConfigError, NotFound
from sluice.policy_version import PolicyVersion
from sluice.weights.adapters import adapters_among
from sluice.weights.file_form import FilePart
from sluice.weights.manifest import plan
from sluice.weights.merging import map_tensors
from sluice.weights.snapshot import Packer, Snapshot
from sluice.weights.tensors import as_bytes

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
        if adapters:
            places = {name: _alone(name, shape) for name, shape in saved.items() if adapters_among((plain_name(name),))}
            constants = {}
        else:
            places, constants = _of_model(config, saved, path)
        dtype = "float32" if adapters else config.model.dtype
        named = [(part.name, dtype, part.shape) for parts in places.values() for part in parts]
        named += [(name, "float32", tuple(constant.shape)) for name, constant in constants.items()]
        packer = Packer(plan(named, bucket_bytes=config.weights.bucket_bytes_on("cpu")))
        for tensors in _loads(packer, saved, places, dtype=dtype):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process is intended
                load_shards(
                    {"model": {_PREFIX + name: t for name, t in tensors.items()}}, storage_reader=reader, no_dist=True
                )
        for name, constant in constants.items():
            packer.put(name, as_bytes(constant))
        state = read_state(path)
    except (OSError, CheckpointException) as error:
        raise NotFound(
            f"{path}: cannot be read; if its run goes on it may have been removed, try again: {error}"
        ) from error
    return packer.seal(PolicyVersion(lineage=state.lineage, number=state.step))


def _loads(
    packer: Packer, shapes: Mapping[str, torch.Size], places: Mapping[str, tuple[FilePart, ...]], *, dtype: str
) -> Iterator[dict[str, torch.Tensor]]:
    """Tensors to be filled, by name: all that stand in the snapshot as they are, then each of the others alone.

    What was filled goes into the snapshot when the next is asked for.
    """
    whole = {name: parts[0].name for name, parts in places.items() if len(parts) == 1}
    yield {name: _room(packer, stored, shapes[name], dtype=dtype) for name, stored in whole.items()}
    for name in places.keys() - whole.keys():
        joined = torch.empty(shapes[name], dtype=getattr(torch, dtype))
        yield {name: joined}
        for part in places[name]:
            packer.put(part.name, as_bytes(part.of(joined)))


def _room(packer: Packer, name: str, shape: torch.Size, *, dtype: str) -> torch.Tensor:
    """The tensor's place in the snapshot, to be filled."""
    return torch.from_numpy(packer.room(name)).view(getattr(torch, dtype)).view(shape)


def _alone(name: str, shape: torch.Size) -> tuple[FilePart, ...]:
    return (FilePart(name=plain_name(name), shape=tuple(shape)),)


def _of_model(
    config: Config, saved: Mapping[str, torch.Size], path: Path
) -> tuple[dict[str, tuple[FilePart, ...]], dict[str, torch.Tensor]]:
    """The published tensors of the model's parameters, a tied head once, and what is published beside them, float32.

    Raises ConfigError unless all parameters were saved.
    """
    folder = Path(config.model.path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    for name, shape in wanted.items():
        if saved.get(name) != shape:
            raise ConfigError(
                f"model.path: {folder} must be the model that was trained; its {name} is {tuple(shape)}, "
                f"{path} has {tuple(saved[name]) if name in saved else 'none'}"
            )
    form, untrained = published_form(folder, model)
    constants = map_tensors(folder, only=untrained.values())
    places = {name: form.parts_of(name, shape) for name, shape in wanted.items()}
    return places, {name: stored.float() for name, stored in constants.items()}
