"""A model folder as a weight snapshot for a rollout to read, made without torch."""

import json
import math
from pathlib import Path

import numpy as np

from sluice.errors import ConfigError
from sluice.policy_version import PolicyVersion
from sluice.weights.further_layers import is_further
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot

BUCKET_BYTES = 1 << 20

_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
_TIED_HEAD = "lm_head.weight"


def read_model_snapshot(folder: Path, version: PolicyVersion) -> Snapshot:
    """The tensors of the folder's .safetensors files as `version`, without a tied head, as a learner packs them.

    Raises ConfigError when the folder is no model folder, or safetensors is not installed.
    """
    try:
        import safetensors
    except ImportError as error:
        raise ConfigError("--model: needs safetensors, which comes with sluice-rl[rollout]") from error
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        layers = config.get("num_hidden_layers", math.inf)
        entries = dict(
            entry
            for file in sorted(folder.glob("*.safetensors"))
            for entry in safetensors.deserialize(file.read_bytes())
            if not is_further(entry[0], layers=layers)
        )
        if config.get("tie_word_embeddings", False):
            entries.pop(_TIED_HEAD, None)
        named = [(name, _DTYPES[entry["dtype"]], entry["shape"]) for name, entry in entries.items()]
        packer = Packer(plan(named, bucket_bytes=BUCKET_BYTES))
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise ConfigError(
            f"--model: {folder} is no Hugging Face model folder with .safetensors files: {error}"
        ) from error
    for name, entry in entries.items():
        packer.put(name, np.frombuffer(entry["data"], np.uint8))
    return packer.seal(version)
