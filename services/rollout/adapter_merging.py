"""Merges a snapshot of LoRA adapters into the rollout's own base weights (`weights.lora: adapter`).

The result holds only the adapted layers, as ordinary tensors of the model; the engine keeps its other weights. Merging
costs host memory for the adapted layers once in `model.dtype` while a version is applied, and the pages of these layers in
the model folder's files, which the operating system may drop.
"""

import numpy as np
from torch import Tensor

from services.rollout.model_files import ModelFacts, check_adapters
from sluice.config.schema import Config
from sluice.errors import TransferError
from sluice.weights.adapters import adapters_among, scale_of
from sluice.weights.manifest import Manifest
from sluice.weights.merging import map_tensors, merged
from sluice.weights.snapshot import Snapshot


class AdapterMerger:
    """Merges the adapters of one run into one model."""

    def __init__(self, model: ModelFacts, config: Config) -> None:
        self._model = model
        self._config = config
        self._base: dict[str, Tensor] = {}
        """The base weights of the adapted layers; empty before the first merge."""

    def check(self, manifest: Manifest) -> None:
        """Raises TransferError unless the adapters fit the model and cover the layers that earlier adapters changed."""
        check_adapters(manifest, self._model.tensors, rank=self._config.model.lora_rank)
        if self._base and self._base.keys() != adapters_among(spec.name for spec in manifest.tensors).keys():
            raise TransferError(
                f"snapshot {manifest.version} adapts other layers than the version that serves, which would keep what "
                "was merged into them; start this rollout again"
            )

    def merge(self, manifest: Manifest, buffer: np.ndarray) -> Snapshot:
        """The adapted layers' weights under the manifest's version. The manifest has passed `check`."""
        if not self._base:
            layers = adapters_among(spec.name for spec in manifest.tensors)
            self._base = map_tensors(self._model.path, only=layers.keys())
        return merged(manifest, buffer, base=self._base, scale=scale_of(self._config), dtype=self._config.model.dtype)
