"""Which snapshots of adapters fit a rollout's model, and that they only move the layers they name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from services.rollout.adapter_merging import AdapterMerger
from services.rollout.model_files import ModelFacts
from sluice.config.schema import Config
from sluice.errors import TransferError
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot
from sluice.weights.tensors import as_bytes, named_tensors

BASE = {"x.q.weight": torch.ones(4, 3), "x.k.weight": torch.ones(2, 3), "norm.weight": torch.ones(3)}
Shapes = dict[str, tuple[int, ...]]


def pair(layer: str, a: tuple[int, ...], b: tuple[int, ...]) -> Shapes:
    return {f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}


Q = pair("x.q", (2, 3), (4, 2))


def snapshot(shapes: Shapes, number: int = 1) -> Snapshot:
    packer = Packer(plan([(name, "float32", shape) for name, shape in shapes.items()], bucket_bytes=64))
    for name, shape in shapes.items():
        packer.put(name, as_bytes(torch.full(shape, 0.5)))
    return packer.seal(PolicyVersion(lineage="a", number=number))


@pytest.fixture
def merger(tmp_path: Path) -> AdapterMerger:
    save_file(BASE, tmp_path / "model.safetensors")
    config = Config.model_validate(
        {
            "model": {"path": str(tmp_path), "dtype": "float32", "lora_rank": 2, "lora_alpha": 8.0},
            "data": {"train_files": ["f.jsonl"]},
            "weights": {"lora": "adapter"},
        }
    )
    facts = ModelFacts(
        path=tmp_path,
        vocab_size=1,
        max_position_embeddings=1,
        end_token_ids=frozenset(),
        model_hash="",
        tokenizer_hash="",
        tensors={name: tuple(tensor.shape) for name, tensor in BASE.items()},
    )
    return AdapterMerger(facts, config)


def test_the_adapted_layers_alone_come_out_under_the_same_version(merger: AdapterMerger) -> None:
    adapters = snapshot(Q, number=7)
    merger.check(adapters.manifest)
    for _ in range(2):  # a second version starts from the base again
        whole = merger.merge(adapters.manifest, adapters.buffer)
        [(name, weight)] = named_tensors(whole.manifest, whole.buffer)
        assert name == "x.q.weight"
        assert torch.equal(weight, torch.full((4, 3), 1 + 4 * 2 * 0.25))
        assert whole.manifest.version.number == 7


@pytest.mark.parametrize(
    ("announced", "fault"),
    [
        (pair("x.q", (3, 3), (4, 3)), r"has misshapen 2 tensors \(x\.q\.lora_A\.weight, x\.q\.lora_B\.weight\)"),
        (pair("x.q", (2, 4), (4, 2)), r"has misshapen 1 tensors \(x\.q\.lora_A\.weight\)"),
        ({"x.q.lora_A.weight": (2, 3)}, r"lacks 1 tensors \(x\.q\.lora_B\.weight\)"),
        (Q | pair("x.v", (2, 3), (4, 2)), r"has unknown 2 tensors \(x\.v\.lora_A\.weight"),
        (Q | pair("norm", (2, 3), (3, 2)), r"has unknown 2 tensors \(norm\.lora_A\.weight"),
        (Q | {"lm_head.weight": (4, 3)}, r"has unknown 1 tensors \(lm_head\.weight\)"),
        ({name: tuple(t.shape) for name, t in BASE.items()}, r"has unknown 3 tensors .* model\.lora_rank and weights\.lora"),
    ],
)  # fmt: skip
def test_anything_but_whole_adapters_of_this_models_layers_is_refused_by_name(
    merger: AdapterMerger, announced: Shapes, fault: str
) -> None:
    with pytest.raises(TransferError, match=fault):
        merger.check(snapshot(announced).manifest)


def test_other_layers_than_those_merged_already_are_refused(merger: AdapterMerger) -> None:
    first, other = snapshot(Q), snapshot(pair("x.k", (2, 3), (2, 2)), number=2)
    merger.check(other.manifest)
    merger.merge(first.manifest, first.buffer)
    merger.check(first.manifest)
    with pytest.raises(TransferError, match="a2 adapts other layers"):
        merger.check(other.manifest)
