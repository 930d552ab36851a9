"""A snapshot as a Hugging Face folder that stock transformers and vLLM load. Copies bytes and needs no collective."""

import json
import os
import shutil
from pathlib import Path

import safetensors

from services.learner.policy.lora import whole_model
from sluice.config.schema import Config
from sluice.errors import SluiceError
from sluice.run_dir.durable import name_synced, sync_tree
from sluice.run_dir.full_disk import located
from sluice.weights.snapshot import Snapshot

_COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "chat_template*",
    "*.model",
)
"""Files that are copied unchanged from the base model's folder, where they exist."""


SHARD_BYTES = 5_000_000_000
"""Limit of one file of weights, the same as transformers'."""


def export_version(snapshot: Snapshot, *, config: Config, target: Path) -> None:
    """Writes a run's snapshot as a whole model, adapters merged in. Raises SluiceError when the folder cannot be written,
    from NoRoom when the disk is full."""
    model = whole_model(snapshot, config)
    try:
        export_model(model, base=Path(config.model.path), target=target)
    except (OSError, safetensors.SafetensorError) as error:
        version, cause = snapshot.manifest.version, located(error, target.parent, _size_bytes(model))
        raise SluiceError(
            f"export of {version} to {target} failed: {cause}; `sluice export RUN_DIR` writes a folder from a checkpoint"
        ) from cause


def _size_bytes(snapshot: Snapshot) -> int:
    return sum(spec.size_bytes for spec in snapshot.manifest.tensors)


def export_model(snapshot: Snapshot, *, base: Path, target: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes weights, configuration and tokenizer, and replaces `target` whole. Raises OSError, SafetensorError.

    The folder is written beside the target first, so that a reader never sees half a model.
    """
    partial, former = (target.with_name(f".{target.name}.{role}") for role in ("partial", "former"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        for pattern in _COPIED:
            for file in base.glob(pattern):
                shutil.copy2(file, partial / file.name)
        _write_config(snapshot, base=base, target=partial)
        _write_weights(snapshot, partial, shard_bytes=shard_bytes)
        sync_tree(partial)
        shutil.rmtree(former, ignore_errors=True)
        if target.exists():
            os.replace(target, former)
        name_synced(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def _write_config(snapshot: Snapshot, *, base: Path, target: Path) -> None:
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)  # the name of `dtype` before transformers 4.56
    tensors = snapshot.manifest.tensors
    # Of a matrix: constants of a router stay float32.
    config["dtype"] = next((spec.dtype for spec in tensors if len(spec.shape) > 1), tensors[0].dtype)
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write_weights(snapshot: Snapshot, folder: Path, *, shard_bytes: int) -> None:
    """Writes one file, or several files and an index, with transformers' names."""
    shards = _shards(snapshot, shard_bytes=shard_bytes)
    facts = {"format": "pt", "sluice_version": str(snapshot.manifest.version)}
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors" if len(shards) > 1 else "model.safetensors"
        safetensors.serialize_file(tensors, str(folder / name), facts)
        (folder / name).chmod(
            (folder / "config.json").stat().st_mode
        )  # safetensors makes files readable for the owner alone
        weight_map |= dict.fromkeys(tensors, name)
    if len(shards) > 1:
        index = {"metadata": {"total_size": _size_bytes(snapshot)}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(snapshot: Snapshot, *, shard_bytes: int) -> list[dict[str, safetensors.TensorSpec]]:
    """The tensors in order, cut where a file would pass the limit; a tensor above the limit has a file of its own."""
    shards: list[dict[str, safetensors.TensorSpec]] = [{}]
    held_bytes = 0
    for spec, view in snapshot.tensors():
        if held_bytes and held_bytes + spec.size_bytes > shard_bytes:
            shards.append({})
            held_bytes = 0
        held_bytes += spec.size_bytes
        # A pointer into the snapshot's buffer, which outlives the writing.
        shards[-1][spec.name] = safetensors.TensorSpec(
            dtype=spec.dtype, shape=spec.shape, data_ptr=view.ctypes.data, data_len=view.nbytes
        )
    return shards
