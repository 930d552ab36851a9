"""A snapshot of LoRA adapters, merged here with the rollout's own base weights (`weights.lora: adapter`).

Only the adapted layers come out, as ordinary tensors of the model; the engine keeps the others as it loaded them. Costs
host memory for those layers once in `model.dtype` while a version is applied, and the model folder's pages of them,
which the operating system may drop.
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
    """Of one model and one run."""

    def __init__(self, model: ModelFacts, config: Config) -> None:
        self._model = model
        self._config = config
        self._base: dict[str, Tensor] = {}
        """The weights of the adapted layers; empty before the first merge."""

    def check(self, manifest: Manifest) -> None:
        """Raises TransferError unless these adapters fit the model, and the layers that are merged already."""
        check_adapters(manifest, self._model.tensors, rank=self._config.model.lora_rank)
        if self._base and self._base.keys() != adapters_among(spec.name for spec in manifest.tensors).keys():
            raise TransferError(
                f"snapshot {manifest.version} adapts other layers than the version that serves, which would keep what "
                "was merged into them; start this rollout again"
            )

    def merge(self, manifest: Manifest, buffer: np.ndarray) -> Snapshot:
        """The adapted layers' weights under the same version. The manifest has passed `check`."""
        if not self._base:
            layers = adapters_among(spec.name for spec in manifest.tensors)
            self._base = map_tensors(self._model.path, only=layers.keys())
        return merged(manifest, buffer, base=self._base, scale=scale_of(self._config), dtype=self._config.model.dtype)
