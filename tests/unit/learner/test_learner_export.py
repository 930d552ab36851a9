"""The exported folder is a Hugging Face model: same numbers, same tokenizer files."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.learner.checkpoint.export import export_model, export_version
from services.learner.policy.stored_model import locate
from sluice.errors import SluiceError
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot
from tests.power_failure import Disk
from tests.unit.learner.learner_cases import make_config, write_tiny_model


def _snapshot(model: torch.nn.Module, dtype: str) -> Snapshot:
    named = dict(model.named_parameters())
    packer = Packer(plan([(name, dtype, tuple(p.shape)) for name, p in named.items()], bucket_bytes=1 << 20))
    for name, parameter in named.items():
        data = parameter.detach().to(getattr(torch, dtype)).reshape(-1).view(torch.uint8)
        packer.put(name, data.numpy())
    return packer.seal(PolicyVersion(lineage="a", number=7))


def test_a_model_that_was_exported_outlives_a_power_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = write_tiny_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    (tmp_path / "run").mkdir()
    for _ in range(2):  # the second replaces the first
        with monkeypatch.context() as patch:
            disk = Disk(patch, tmp_path / "run")
            export_model(_snapshot(model, "float32"), base=base, target=tmp_path / "run" / "model")
            disk.close()
        written = {path.name: path.read_bytes() for path in (tmp_path / "run" / "model").iterdir()}
        assert disk.left()["model"] == written


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stock_transformers_loads_it_and_computes_identical_logits(tmp_path: Path, dtype: str) -> None:
    base = write_tiny_model(tmp_path / "base")
    (base / "tokenizer.json").write_text('{"kept": true}')
    (base / "chat_template.jinja").write_text("{{ messages }}")
    trained = AutoModelForCausalLM.from_pretrained(write_tiny_model(tmp_path / "trained", seed=1), dtype=dtype)
    export_model(_snapshot(trained, dtype), base=base, target=tmp_path / "model")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(12)[None]
    assert reloaded.dtype == getattr(torch, dtype)
    assert torch.equal(reloaded(ids).logits, trained(ids).logits)
    assert json.loads((tmp_path / "model" / "tokenizer.json").read_text()) == {"kept": True}
    assert (tmp_path / "model" / "chat_template.jinja").exists()
    modes = {path.stat().st_mode for path in (tmp_path / "model").glob("*.safetensors")}
    assert modes == {(tmp_path / "model" / "config.json").stat().st_mode}, "who may read one file may read all"


def test_a_second_export_replaces_the_first_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    for _ in range(2):
        export_model(_snapshot(model, "float32"), base=base, target=tmp_path / "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]


def test_weights_beyond_the_limit_of_a_file_are_split_as_transformers_splits_them(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    export_model(_snapshot(model, "float32"), base=base, target=tmp_path / "model", shard_bytes=8_000)
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all(path.stat().st_size < 8_000 + 4_000 for path in shards)  # the header comes on top
    assert not locate(tmp_path / "model", model).whole_because, "a learner reads slices of it"
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(12)[None]
    assert torch.equal(reloaded(ids).logits, model(ids).logits)


def test_an_export_that_fails_leaves_the_former_model_and_nothing_else(tmp_path: Path) -> None:
    base = write_tiny_model(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    export_model(_snapshot(model, "float32"), base=base, target=tmp_path / "model")
    former = (tmp_path / "model" / "model.safetensors").read_bytes()
    (base / "config.json").unlink()
    with pytest.raises(SluiceError, match="export of a7"):
        export_version(_snapshot(model, "float32"), config=make_config(base), target=tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == former
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "model"]
