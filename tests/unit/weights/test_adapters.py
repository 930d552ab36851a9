"""Adapters in a snapshot: names, and merging by numbers worked by hand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sluice.config.schema import Config
from sluice.policy_version import PolicyVersion
from sluice.weights.adapters import adapters_among, pushes_adapters, scale_of
from sluice.weights.manifest import plan
from sluice.weights.merging import map_tensors, merge, merged
from sluice.weights.snapshot import Packer, Snapshot
from sluice.weights.tensors import as_bytes, named_tensors

VERSION = PolicyVersion(lineage="a", number=4)


def config(rank: int, push: str = "adapter") -> Config:
    return Config.model_validate(
        {
            "model": {"path": "m", "lora_rank": rank, "lora_alpha": 6.0},
            "data": {"train_files": ["f.jsonl"]},
            "weights": {"lora": push},
        }
    )


def sealed(tensors: dict[str, torch.Tensor]) -> Snapshot:
    packer = Packer(plan([(n, "float32", tuple(t.shape)) for n, t in tensors.items()], bucket_bytes=64))
    for name, tensor in tensors.items():
        packer.put(name, as_bytes(tensor))
    return packer.seal(VERSION)


def test_adapters_are_found_by_either_matrix_and_named_after_their_layer() -> None:
    found = adapters_among(["x.q.lora_B.weight", "x.q.lora_A.weight", "x.q.weight", "x.k.lora_A.weight", "norm.weight"])
    assert list(found) == ["x.k.weight", "x.q.weight"]
    assert (found["x.q.weight"].a, found["x.q.weight"].b) == ("x.q.lora_A.weight", "x.q.lora_B.weight")


def test_adapters_are_pushed_only_when_there_are_any_and_they_are_asked_for() -> None:
    assert pushes_adapters(config(2))
    assert not pushes_adapters(config(2, "merged"))
    assert not pushes_adapters(config(0, "merged"))
    assert scale_of(config(4)) == 1.5


def test_merging_adds_the_scaled_product_in_float32() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.bfloat16)
    a, b = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[2.0], [0.001]])
    found = merge(weight, a, b, scale=0.5)
    assert found.dtype == torch.float32
    assert torch.equal(found, torch.tensor([[2.0, 2.0, 2.0], [4.0005, 5.0, 5.9995]]))
    assert torch.equal(weight, torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_snapshot_holds_the_base_with_adapters_and_converts_the_rest(tmp_path: Path, dtype: str) -> None:
    torch.manual_seed(0)
    base = {"x.q.weight": torch.randn(5, 3), "norm.weight": torch.randn(5)}
    save_file(base, tmp_path / "model.safetensors")
    a, b = torch.randn(2, 3), torch.randn(5, 2)
    adapters = sealed({"x.q.lora_A.weight": a, "x.q.lora_B.weight": b, "x.k.lora_A.weight": a})
    whole = merged(adapters.manifest, adapters.buffer, base=map_tensors(tmp_path), scale=3.0, dtype=dtype)
    assert whole.manifest.version == VERSION
    found = dict(named_tensors(whole.manifest, whole.buffer))
    wanted = getattr(torch, dtype)
    assert found.keys() == base.keys()
    assert torch.equal(found["norm.weight"], base["norm.weight"].to(wanted))
    by_hand = [
        [base["x.q.weight"][i, j] + 3.0 * (b[i, 0] * a[0, j] + b[i, 1] * a[1, j]) for j in range(3)] for i in range(5)
    ]
    tolerance = 1e-6 if dtype == "float32" else 0.05
    np.testing.assert_allclose(found["x.q.weight"].float(), by_hand, rtol=tolerance, atol=tolerance)
    assert found["x.q.weight"].dtype == wanted


def test_only_the_wanted_tensors_of_a_folder_are_mapped(tmp_path: Path) -> None:
    save_file({"a.weight": torch.ones(2), "b.weight": torch.ones(3)}, tmp_path / "one.safetensors")
    save_file({"c.weight": torch.ones(4)}, tmp_path / "two.safetensors")
    assert map_tensors(tmp_path, only={"b.weight", "c.weight"}).keys() == {"b.weight", "c.weight"}
    assert map_tensors(tmp_path).keys() == {"a.weight", "b.weight", "c.weight"}
