"""A snapshot as a Hugging Face folder that stock transformers and vLLM load. Needs no collective: bytes to bytes."""

import json
import os
import shutil
from pathlib import Path

import safetensors

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
"""What is taken from the base model's folder as it is, where it exists."""


def export_model(snapshot: Snapshot, *, base: Path, target: Path) -> None:
    """Writes weights, configuration and tokenizer to `target`, replacing it whole. Raises OSError.

    Written beside the target first, so that a reader never sees half a model.
    """
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for pattern in _COPIED:
        for file in base.glob(pattern):
            shutil.copy2(file, partial / file.name)
    _write_config(snapshot, base=base, target=partial)
    _write_weights(snapshot, partial / "model.safetensors")
    former = target.with_name(f".{target.name}.former")
    shutil.rmtree(former, ignore_errors=True)
    if target.exists():
        os.replace(target, former)
    os.replace(partial, target)
    shutil.rmtree(former, ignore_errors=True)


def _write_config(snapshot: Snapshot, *, base: Path, target: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    config.pop("torch_dtype", None)  # its name before transformers 4.56
    config["dtype"] = snapshot.manifest.tensors[0].dtype
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _write_weights(snapshot: Snapshot, path: Path) -> None:
    tensors = {
        # Addresses within the snapshot's buffer, which outlives this call.
        spec.name: safetensors.TensorSpec(
            dtype=spec.dtype, shape=spec.shape, data_ptr=view.ctypes.data, data_len=view.nbytes
        )
        for spec, view in snapshot.tensors()
    }
    version = snapshot.manifest.version
    safetensors.serialize_file(tensors, str(path), {"format": "pt", "sluice_version": str(version)})
