"""The one piece of Sluice that runs inside vLLM's workers (`worker_extension_cls`), reached by `collective_rpc`.

The same code on CUDA and CPU. On a CPU vLLM packs each linear layer's weight for oneDNN once, after loading, and then
drops the plain weight, so new weights could neither be loaded nor be seen (a tied head keeps its own stale copy).
Importing this module, which vLLM does before it builds the model, keeps the plain weight, and `sl_load_weights` packs
again. It costs a second copy of the weights; doing without the packing is as fast on a model of 338k parameters, but
18 % slower on one of 3 million. A load of the former takes 4 ms.
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
    """Mixed into vLLM's Worker; names start with `sl_` so that they meet none of its own."""

    def sl_load_weights(self, manifest: Manifest, buffer: np.ndarray) -> None:
        """Loads these tensors in place. Raises what vLLM's loaders raise; the model then holds mixed weights."""
        model: torch.nn.Module = self.model_runner.model  # type: ignore[attr-defined]
        model.load_weights(named_tensors(manifest, buffer))  # type: ignore[operator]
        for module in model.modules():
            if hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)  # type: ignore[union-attr,operator]

    def sl_load_file(self, path: str) -> None:
        """As `sl_load_weights`, from a snapshot file: how worker processes other than the engine's own get them."""
        snapshot = files.read_snapshot(Path(path))
        self.sl_load_weights(snapshot.manifest, snapshot.buffer)
