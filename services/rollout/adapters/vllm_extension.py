"""The one piece of Sluice that runs inside vLLM's workers (`worker_extension_cls`), called through `collective_rpc`.

The same code runs on CUDA and CPU. On a CPU vLLM packs each linear layer's weight for oneDNN once, after loading, and then
drops the plain weight, so new weights could neither be loaded nor take effect (a tied head keeps its own stale copy).
vLLM imports this module before vLLM builds the model; the import keeps the plain weight, and `sl_load_weights` packs
again. The plain weights are a second copy of the weights. Without the packing a model of 338k parameters is as fast, but a
model of 3 million parameters is 18 % slower. A load of the smaller model takes 4 ms.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from vllm.model_executor.layers import utils as layer_utils
from vllm.platforms import current_platform

from sluice.weights import files
from sluice.weights.manifest import Manifest
from sluice.weights.tensors import named_tensors

if TYPE_CHECKING:
    import torch

_pack = layer_utils.dispatch_cpu_unquantized_gemm


def _pack_and_keep(layer: "torch.nn.Module", remove_weight: bool) -> None:
    _pack(layer, remove_weight=False)


if current_platform.is_cpu():
    layer_utils.dispatch_cpu_unquantized_gemm = _pack_and_keep


class SluiceExtension:
    """Mixed into vLLM's Worker; method names start with `sl_` so that no name meets one of vLLM's."""

    def sl_load_weights(self, manifest: Manifest, buffer: np.ndarray) -> None:
        """Loads these tensors in place. After an error of vLLM's loaders the model holds mixed weights."""
        model: torch.nn.Module = self.model_runner.model  # type: ignore[attr-defined]
        model.load_weights(named_tensors(manifest, buffer))  # type: ignore[operator]
        for module in model.modules():
            if hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)  # type: ignore[union-attr,operator]

    def sl_load_file(self, path: str) -> None:
        """As `sl_load_weights`, from a snapshot file, for worker processes other than the engine's own."""
        snapshot = files.read_snapshot(Path(path))
        self.sl_load_weights(snapshot.manifest, snapshot.buffer)
