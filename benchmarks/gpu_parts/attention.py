"""The learner's attention on one packed row of 20k tokens: exactness against float32 blocks, and time."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_parts.context import Context, Figure, relative, seconds
from services.learner.policy.attention import packed_attention
from services.learner.policy.layout import Layout

HEADS, KV_HEADS, WIDTH = 16, 8, 128


def run(context: Context) -> Iterator[Figure]:
    """Relative errors of output and gradients, and the rate of forward and backward."""
    device = torch.device(context.device)
    half = torch.float32 if context.small else torch.bfloat16
    lengths = np.array([40, 24] if context.small else [12_000, 6_000, 2_000])
    torch.manual_seed(0)
    states = [torch.randn(1, n, int(lengths.sum()), WIDTH, device=device) for n in (HEADS, KV_HEADS, KV_HEADS)]
    low = [s.to(half).requires_grad_() for s in states]
    high = [s.detach().float().requires_grad_() for s in low]
    layout = Layout(lengths, device)

    def attend(given: list[Tensor]) -> Tensor:
        return packed_attention(torch.nn.Identity(), *given, None, layout=layout)[0]

    found, expected = attend(low), attend(high)
    yield Figure(what="output: error against float32", value=relative(found, expected), unit="")
    noise = torch.randn_like(expected)
    found.backward(noise.to(half))
    expected.backward(noise)
    for name, ours, theirs in zip("qkv", low, high, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        yield Figure(what=f"gradient of {name}: error against float32", value=relative(ours.grad, theirs.grad), unit="")

    def both() -> None:
        for each in low:
            each.grad = None
        attend(low).backward(noise.to(half))

    took = seconds(context.device, both, rounds=5)
    rate = float(3 * 4 * HEADS * WIDTH * (lengths**2).sum() / 2 / took)
    what = f"{int(lengths.sum()):,} tokens, forward and backward"
    yield context.compared(what, 1e3 * took, "ms", ceiling="flops", rate=rate)
