"""A pushed snapshot of adapters through the rollout's intake: verified as sent, merged, applied, reported as sent."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from services.rollout.adapter_merging import AdapterMerger
from services.rollout.adapters.transformers_engine import TransformersEngine
from services.rollout.engine_loop import EngineLoop
from services.rollout.model_files import ModelFacts, read_model
from services.rollout.weight_intake import WeightIntake
from sluice.config.schema import Config
from sluice.errors import TransferError
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import plan
from sluice.weights.receiver import WeightReceiver
from sluice.weights.snapshot import Packer, Snapshot
from sluice.weights.snapshot_files import write_snapshot
from tests.tiny_model import load, snapshot, write_tiny_model

pytestmark = pytest.mark.integration

LAYER = "model.layers.1.mlp.down_proj"
TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> ModelFacts:
    return read_model(write_tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def model(facts: ModelFacts) -> PreTrainedModel:
    return load(facts.path)


@pytest.fixture
async def loop(facts: ModelFacts) -> AsyncIterator[EngineLoop]:
    engine = TransformersEngine(facts, dtype="float32", max_model_len=128, max_num_seqs=4)
    made = EngineLoop(engine, max_samples=4)
    made.start()
    yield made
    made.close()


def intake(loop: EngineLoop, facts: ModelFacts, *, adapters: bool) -> WeightIntake:
    config = Config.model_validate(
        {
            "model": {"path": str(facts.path), "dtype": "float32", "lora_rank": 2, "lora_alpha": 4.0},
            "data": {"train_files": ["f.jsonl"]},
        }
    )
    merger = AdapterMerger(facts, config) if adapters else None
    return WeightIntake(loop=loop, receiver=WeightReceiver(), model=facts, inflight="keep", merger=merger)


def adapters_of(model: PreTrainedModel, number: int) -> Snapshot:
    outputs, inputs = model.get_parameter(f"{LAYER}.weight").shape
    generator = torch.Generator().manual_seed(number)
    tensors = {
        f"{LAYER}.lora_A.weight": torch.randn(2, inputs, generator=generator),
        f"{LAYER}.lora_B.weight": torch.randn(outputs, 2, generator=generator),
    }
    packer = Packer(plan([(n, "float32", tuple(t.shape)) for n, t in tensors.items()], bucket_bytes=1 << 10))
    for name, tensor in tensors.items():
        packer.put(name, tensor.numpy())
    return packer.seal(PolicyVersion(lineage="a", number=number))


async def test_adapters_are_merged_and_acknowledged_with_the_digest_that_was_sent(
    loop: EngineLoop, facts: ModelFacts, model: PreTrainedModel, tmp_path: Path
) -> None:
    weights = intake(loop, facts, adapters=True)
    held = loop.engine._model  # type: ignore[attr-defined]
    for number in (0, 1):
        sent = adapters_of(model, number)
        await weights.receive(epoch="", manifest=sent.manifest, file_path=str(write_snapshot(tmp_path, sent)))
        applied = await weights.apply(sent.manifest.version, timeout_s=TIMEOUT_S)
        assert applied.digest == sent.manifest.digest
        assert loop.weights == sent.manifest
        assert loop.version == sent.manifest.version
        generator = torch.Generator().manual_seed(number)
        shape = model.get_parameter(f"{LAYER}.weight").shape
        a, b = (torch.randn(size, generator=generator) for size in ((2, shape[1]), (shape[0], 2)))
        for name, parameter in model.named_parameters():
            expected = parameter + (b @ a) * 2.0 if name == f"{LAYER}.weight" else parameter
            assert torch.equal(held.get_parameter(name), expected), name
    weights.close()


async def test_a_snapshot_of_the_other_kind_is_refused_before_a_byte_is_sent(
    loop: EngineLoop, facts: ModelFacts, model: PreTrainedModel
) -> None:
    whole, adapters = snapshot(model, 1), adapters_of(model, 1)
    with pytest.raises(TransferError, match=r"has unknown .*model\.lora_rank and weights\.lora"):
        await intake(loop, facts, adapters=True).receive(epoch="", manifest=whole.manifest, file_path="absent")
    with pytest.raises(TransferError, match=r"lacks .* same model"):
        await intake(loop, facts, adapters=False).receive(epoch="", manifest=adapters.manifest, file_path="absent")
