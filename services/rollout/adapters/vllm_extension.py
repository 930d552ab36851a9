"""The one piece of Sluice that runs inside vLLM's workers (`worker_extension_cls`), called through `collective_rpc`.

The same code runs on CUDA and CPU. On a CPU vLLM packs each linear layer's weight for oneDNN once, after loading, and then
drops the plain weight, so new weights could neither be loaded nor take effect (a tied head keeps its own stale copy).
vLLM imports this module before vLLM builds the model; the import keeps the plain weight, and `sl_load_weights` packs
again. The plain weights are a second copy of the weights. Without the packing a model of 338k parameters is as fast, but a
model of 3 million parameters is 18 % slower. A load of the smaller model takes 4 ms. A layer's experts are packed and kept
likewise. What vLLM derives from weights (MLA attention's halves of `kv_b_proj`) is derived again after every load.
"""

from typing import TYPE_CHECKING

import numpy as np
from vllm.model_executor.layers import utils as layer_utils
from vllm.model_executor.layers.attention import MLAAttention
from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.platforms import current_platform

from sluice.weights import lending
from sluice.weights.manifest import Manifest
from sluice.weights.tensors import named_tensors

if TYPE_CHECKING:
    import torch

_pack = layer_utils.dispatch_cpu_unquantized_gemm


def _pack_and_keep(layer: "torch.nn.Module", remove_weight: bool) -> None:
    _pack(layer, remove_weight=False)


_pack_experts = CPUUnquantizedExperts.process_weights_after_loading

_PLAIN_EXPERTS = "sl_plain_experts"
"""Where a layer keeps its experts' plain weights, and vLLM's object that packs them."""


def _pack_experts_and_keep(experts: CPUUnquantizedExperts, layer: "torch.nn.Module") -> None:
    plain = {name: layer._parameters[name] for name in ("w13_weight", "w2_weight")}
    _pack_experts(experts, layer)
    setattr(layer, _PLAIN_EXPERTS, (experts, plain))


_rotate = RotaryEmbedding.forward_cpu


def _rotate_every_head(
    self: RotaryEmbedding, positions: "torch.Tensor", query: "torch.Tensor", key: "torch.Tensor | None" = None
) -> "tuple[torch.Tensor, torch.Tensor | None]":
    """vLLM 0.32's operator for CPUs takes queries of [tokens, heads, size] (DeepSeek's) for queries of one head."""
    rotate = _rotate if query.ndim == 2 else RotaryEmbedding.forward_native
    return rotate(self, positions, query, key)


if current_platform.is_cpu():
    RotaryEmbedding.forward_cpu = _rotate_every_head  # type: ignore[method-assign]
    layer_utils.dispatch_cpu_unquantized_gemm = _pack_and_keep
    CPUUnquantizedExperts.process_weights_after_loading = _pack_experts_and_keep  # type: ignore[method-assign]


class SluiceExtension:
    """Mixed into vLLM's Worker; method names start with `sl_` so that no name meets one of vLLM's."""

    def sl_load_weights(self, manifest: Manifest, buffer: np.ndarray) -> None:
        """Loads these tensors in place. After an error of vLLM's loaders the model holds mixed weights."""
        model: torch.nn.Module = self.model_runner.model  # type: ignore[attr-defined]
        experts = [
            (module, *getattr(module, _PLAIN_EXPERTS)) for module in model.modules() if hasattr(module, _PLAIN_EXPERTS)
        ]
        for layer, _, plain in experts:
            layer._parameters.update(plain)
        model.load_weights(named_tensors(manifest, buffer))  # type: ignore[operator]
        for layer, packer, _ in experts:
            _pack_experts(packer, layer)
        for module in model.modules():
            if hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)  # type: ignore[union-attr,operator]
            elif isinstance(module, MLAAttention):
                module.process_weights_after_loading(self.model_config.dtype)  # type: ignore[attr-defined]

    def sl_load_borrowed(self, manifest: Manifest, place: str) -> None:
        """As `sl_load_weights`, for workers in processes of their own: maps the copy that the engine's process lends.

        vLLM's loaders copy this worker's slices out of the mapping; nothing else is read, and the mapping ends with the call.
        """
        self.sl_load_weights(manifest, lending.borrow(place, total_bytes=manifest.total_bytes, digest=manifest.digest))
