"""The bytes that the learner's forward pass keeps for its backward pass, counted tensor by tensor.

Counted are the tensors that autograd saves in transformers' layers as the learner calls them
(services/learner/policy): each tensor once, however many operations save it. Norms compute in float32, so in half precision
they keep a float32 copy of their input. Rotary embeddings keep nothing of a token: their cosines need no gradient.

Letters: T tokens of a micro-batch, D hidden size, I feed-forward width, b bytes of an element.
"""

import math

from sluice.sizing.model_shape import Experts, Layer, ModelShape

_FLOAT32 = 4


def layer_bytes(shape: ModelShape, layer: Layer, *, element: int, packed_kernel: bool, context: int = 1) -> int:
    """Bytes a token that one layer keeps. `element` is b; see `attention_bytes` for the others."""
    hidden = shape.hidden
    before = 2 * (_norm_bytes(shape, hidden, element) + element * hidden)  # the norms' results feed linear layers
    behind = _norm_bytes(shape, hidden, element) * (shape.norms - 2)
    feed = element * 4 * shape.intermediate if layer.experts is None else _expert_bytes(layer.experts, element)
    return (
        before + behind + attention_bytes(shape, element=element, packed_kernel=packed_kernel, context=context) + feed
    )


def attention_bytes(shape: ModelShape, *, element: int, packed_kernel: bool, context: int = 1) -> int:
    """Bytes a token that attention keeps: queries, keys, values, the result and its log-sum-exp.

    packed_kernel: flash attention over packed sequences (CUDA, half precision). Elsewhere sequences are put into padded
    blocks, and the result is copied once more on its way back; the padding, at most a fifth, is not counted.
    context: `learner.context_parallel_size`; attention then has some heads of all slices instead of all heads of one, and
    key-value heads are repeated until they divide.
    """
    queries, keys = shape.heads * shape.head_dim, math.lcm(shape.kv_heads, context) * shape.head_dim
    results = 1 if packed_kernel else 2
    own_keys = shape.kv_heads * shape.head_dim
    normed = _norm_bytes(shape, queries + own_keys, element) if shape.qk_norm else 0
    return element * (queries + 2 * keys + results * queries) + _FLOAT32 * shape.heads + normed


def checkpointed_bytes(shape: ModelShape, *, element: int) -> int:
    """Bytes a token that one layer keeps with gradient checkpointing: its input."""
    return element * shape.hidden


def model_bytes(shape: ModelShape, *, element: int) -> int:
    """Bytes a token that is kept outside the layers: the final norm's, and cosines and sines of the positions."""
    return _norm_bytes(shape, shape.hidden, element) + 2 * element * shape.head_dim


def backward_bytes(shape: ModelShape, *, element: int) -> int:
    """Bytes a token of gradients that exist at once within a layer, beyond what the layer has freed by then.

    Behind the product of gate and up projection two gradients of width I stand beside the gradient of the residual stream,
    its sum and the gradient of the norm's result.
    """
    widest = max(
        layer.experts.chosen * layer.experts.intermediate if layer.experts else shape.intermediate
        for layer in shape.layers
    )
    return element * (2 * widest + 3 * shape.hidden)


def _norm_bytes(shape: ModelShape, width: int, element: int) -> int:
    """Input in float32 and normalised input, which is in float32 too where the gain multiplies in float32 (Gemma)."""
    return (_FLOAT32 + (_FLOAT32 if shape.float32_norms else element)) * width


def _expert_bytes(experts: Experts, element: int) -> int:
    """For each chosen expert its input, gate, up, activation, product and result; and the router's logits and softmax."""
    each = 2 * experts.hidden + 4 * experts.intermediate
    return element * experts.chosen * each + (element + _FLOAT32) * experts.count
