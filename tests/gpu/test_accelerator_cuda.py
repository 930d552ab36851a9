"""What sluice/accelerator.py, the fused products and a snapshot's memory do only on a CUDA device."""

import numpy as np
import pytest
import torch

from services.learner.policy import matrix_products
from services.learner.policy.head import Head
from services.learner.snapshot.host_buffers import HostBuffers
from sluice.accelerator import SideCopies, backend_between, host_memory, identity, memory_bytes, settle

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]

CUDA = torch.device("cuda")


def test_a_device_has_one_identity_and_a_pair_on_it_takes_gloo() -> None:
    assert identity().startswith("GPU-")
    assert len(identity()) == len("GPU-") + 36
    assert backend_between(identity(), identity()) == "gloo"
    free, whole = memory_bytes(CUDA) or (0, 0)
    assert 0 < free <= whole


def test_copies_beside_the_stream_fill_page_locked_memory_with_what_was_computed_before_them() -> None:
    copies, buffers = SideCopies(CUDA), HostBuffers(64 << 20, device=CUDA)
    assert host_memory(16, device=CUDA).is_pinned()
    for value in range(1, 5):
        into = buffers.take()
        source = torch.zeros(16 << 20, device=CUDA)
        for _ in range(value):
            source += 1
        copies.copy(into, source)
        source = source * 0  # the copy holds what it was given
        copies.finish()
        assert (into.view(np.float32) == value).all()
        del into
    settle(CUDA)
    assert not source.any()


def test_the_device_has_products_whose_sums_stay_float32_and_the_head_uses_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert matrix_products.fused_product(CUDA, torch.bfloat16) is not None
    torch.manual_seed(0)
    hidden, weight = (torch.randn(n, 256, device=CUDA, dtype=torch.bfloat16).requires_grad_() for n in (300, 5000))
    targets = torch.randint(0, 5000, (300,), device=CUDA)
    head = Head(temperature=1.0, chunk_tokens=128, float32=False)

    def found() -> tuple[torch.Tensor, ...]:
        loss, logprobs, entropies = head.loss(hidden, weight, targets, lambda chosen, where: chosen.sum())
        return logprobs, entropies, *torch.autograd.grad(loss, (hidden, weight))

    fused = found()
    monkeypatch.setattr(matrix_products, "fused_product", lambda device, dtype: matrix_products.in_float32)
    for ours, theirs in zip(fused, found(), strict=True):
        assert (ours.float() - theirs.float()).norm() < 1e-3 * theirs.float().norm()
