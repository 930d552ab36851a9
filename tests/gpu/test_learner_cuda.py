"""What the learner does only on a CUDA device: flash attention over packed sequences, offloaded shards, peaks of memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.learner.distributed.ranks import Ranks, join_ranks
from services.learner.policy.attention import packed_attention
from services.learner.policy.layout import Layout, SharedLayout
from services.learner.training.device_peak import peak_flops
from services.learner.training.peak_memory import PeakMemory
from tests.integration.learner_rank import run_job
from tests.integration.loading_ranks import assert_same_bits
from tests.unit.learner.learner_cases import write_tiny_model

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(180)]

LENGTHS = np.array([70, 33, 32, 5, 1])


@pytest.fixture(scope="module")
def alone() -> Iterator[Ranks]:
    """This process as the only rank, on its GPU."""
    ranks = join_ranks()
    yield ranks
    ranks.leave()


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("window", [None, 9])
def test_flash_attention_and_its_gradients_equal_the_blocks_in_float32(
    window: int | None, kv_heads: int, shared: bool
) -> None:
    torch.manual_seed(0)
    heads = (4, kv_heads, kv_heads)
    half = [torch.randn(1, n, LENGTHS.sum(), 32, device="cuda", dtype=torch.bfloat16).requires_grad_() for n in heads]
    whole = [states.detach().float().requires_grad_() for states in half]
    cuda = torch.device("cuda")
    layout = SharedLayout(LENGTHS[:2], [LENGTHS[2:4], LENGTHS[4:]], cuda) if shared else Layout(LENGTHS, cuda)
    flash, blocks = (
        packed_attention(torch.nn.Identity(), *states, None, sliding_window=window, layout=layout)[0]
        for states in (half, whole)
    )
    torch.testing.assert_close(flash.float(), blocks, atol=2e-2, rtol=2e-2)
    flash.float().square().sum().backward()
    blocks.square().sum().backward()
    for ours, theirs in zip(half, whole, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad.float() - theirs.grad).norm() < 0.03 * theirs.grad.norm()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_offloaded_shards_train_the_same_weights(tmp_path: Path, alone: Ranks, dtype: str) -> None:
    model = write_tiny_model(tmp_path, kv_heads=3)

    def weights(**learner: Any) -> np.ndarray:
        config = {"model": {"path": str(model), "dtype": dtype}, "learner": {"mini_batch_size": 3, **learner}}
        found = run_job(model, {"until": 2, "groups": 6, "n": 4, "config": config}, alone)
        return torch.from_numpy(found["weights"]).view(getattr(torch, dtype)).float().numpy()

    on_device, offloaded = weights(), weights(cpu_offload=True)
    assert np.allclose(on_device, offloaded, rtol=2e-2 if dtype == "bfloat16" else 1e-3, atol=1e-2)


@pytest.mark.parametrize("cpu_offload", [False, True])
def test_a_model_is_loaded_in_shards_with_the_bits_and_on_the_device_of_one_loaded_whole(
    tmp_path: Path, alone: Ranks, cpu_offload: bool
) -> None:
    assert_same_bits(
        write_tiny_model(tmp_path), {"learner": {"cpu_offload": cpu_offload}, "model": {"lora_rank": 3}}, alone
    )


def test_peak_memory_is_that_of_tensors_since_the_reset_and_the_device_has_a_peak() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    memory = PeakMemory(device)
    memory.reset()
    before = memory.read_bytes()
    large = torch.empty(64 << 20, dtype=torch.uint8, device=device)
    most = memory.read_bytes()
    del large
    memory.reset()
    assert before is not None
    assert most is not None
    assert most - before >= 64 << 20
    assert memory.read_bytes() == torch.cuda.memory_allocated(device) <= before
    name = torch.cuda.get_device_name(device)
    assert peak_flops(name), f"{name} is not in the table, so its runs have no learner/mfu"
