"""A folder whose files do not make up the model of its config.json is refused by headers alone, by tensor and file."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from structlog.testing import capture_logs
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from services.learner.policy import sharded_loading
from services.learner.policy.model_config import empty_model
from services.learner.policy.sharded_loading import twins_agree
from services.learner.policy.stored_model import StoredModel, locate
from sluice.errors import ConfigError
from tests.decoder_families import tiny_config
from tests.unit.learner.learner_cases import write_tiny_model

INDEX = "model.safetensors.index.json"
NORM = "model.layers.0.input_layernorm.weight"
FIRST, LAST = "first.safetensors", "last.safetensors"

Change = Callable[[Path], None]


class _OneRank:
    rank, size = 0, 1

    def agree(self, ok: bool) -> bool:
        return ok


def _located(folder: Path) -> StoredModel:
    return locate(folder, empty_model(AutoConfig.from_pretrained(folder), path=str(folder)))


def _rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], object], **facts: str) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt", **facts})


def _split(folder: Path) -> None:
    """Two files of half the tensors each, and their index."""
    tensors = sorted(load_file(folder / "model.safetensors").items())
    half = len(tensors) // 2
    files = {FIRST: dict(tensors[:half]), LAST: dict(tensors[half:])}
    for name, part in files.items():
        save_file(part, folder / name, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    placed = {tensor: name for name, part in files.items() for tensor in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def _place(folder: Path, tensor: str, file: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][tensor] = file
    (folder / INDEX).write_text(json.dumps(index))


ONE_FILE: list[tuple[Change, str]] = [
    (lambda f: (f / "model.safetensors").unlink(), r"has no weights: neither model\.safetensors nor model\.safetensors\.index"),
    (lambda f: os.truncate(f / "model.safetensors", 5000), r"model\.safetensors is cut short or no safetensors file: "),
    (lambda f: (f / "model.safetensors").write_bytes(b""), r"model\.safetensors is cut short or no safetensors file: "),
    (
        lambda f: _rewrite(f / "model.safetensors", lambda t: t.pop(NORM)),
        rf"no file of .* has {NORM}, which Qwen3ForCausalLM of config\.json needs",
    ),
    (
        lambda f: _rewrite(f / "model.safetensors", lambda t: t.update({"v_head.weight": torch.ones(1), "x": torch.ones(1)})),
        r"model\.safetensors has v_head\.weight and 1 more tensors, for which Qwen3ForCausalLM .* has no place",
    ),
    (
        lambda f: _rewrite(f / "model.safetensors", lambda t: t.update({NORM: torch.ones(25)})),
        rf"model\.safetensors has {NORM} with shape \(25,\), config\.json beside it asks for \(24,\)",
    ),
]  # fmt: skip
SEVERAL_FILES: list[tuple[Change, str]] = [
    (lambda f: (f / LAST).unlink(), rf"{INDEX} names {LAST}, which is not there"),
    (lambda f: os.truncate(f / LAST, 4000), rf"{LAST} is cut short"),
    (lambda f: _place(f, "ghost", LAST), rf"tensor ghost is not in {LAST}, where the index places it"),
    (lambda f: _place(f, NORM, LAST), rf"tensor {NORM} is not in {LAST}, where the index places it"),
    (lambda f: _place(f, NORM, "../other.safetensors"), r"must name a file of its own folder"),
    (lambda f: _place(f, NORM, 7), r"must name a file of its own folder"),
    (lambda f: (f / INDEX).write_text("{"), rf"{INDEX} is no index of safetensors files: JSONDecodeError"),
    (lambda f: (f / INDEX).write_text("[]"), rf"{INDEX} is no index of safetensors files: TypeError"),
    (
        lambda f: _rewrite(f / LAST, lambda t: t.update({NORM: torch.ones(24)})),
        rf"tensor {NORM} is both in {FIRST} and in {LAST}; the files are of two models or of two downloads",
    ),
    (
        lambda f: _rewrite(f / LAST, len, sluice_version="a7"),
        rf"written by different exports, {FIRST} of version none, {LAST} of version a7",
    ),
]


@pytest.mark.parametrize(("files", "change", "said"), [(1, *c) for c in ONE_FILE] + [(2, *c) for c in SEVERAL_FILES])
def test_a_folder_that_is_not_the_model_is_refused_with_one_line(
    tmp_path: Path, files: int, change: Change, said: str
) -> None:
    write_tiny_model(tmp_path)
    if files == 2:
        _split(tmp_path)
    assert not _located(tmp_path).whole_because
    change(tmp_path)
    with pytest.raises(ConfigError, match=said) as caught:
        _located(tmp_path)
    assert str(caught.value).startswith("model.path: ")
    assert len(str(caught.value).splitlines()) == 1


def test_what_old_files_hold_and_models_compute_is_passed_over(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    former = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.ones(4) for layer in range(2)}
    _rewrite(tmp_path / "model.safetensors", lambda tensors: tensors.update(former))
    assert _located(tmp_path).tensors.keys() == {*load_file(tmp_path / "model.safetensors")} - {*former} | {
        "lm_head.weight"
    }


def test_a_tied_head_may_be_stored_twice_if_it_is_equal(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    file, name = tmp_path / "model.safetensors", "model.embed_tokens.weight"
    _rewrite(file, lambda tensors: tensors.update({"lm_head.weight": tensors[name].clone()}))
    stored = _located(tmp_path)
    assert [tuple(tensor.name for tensor in pair) for pair in stored.twins] == [(name, "lm_head.weight")]
    assert twins_agree(stored, _OneRank())  # type: ignore[arg-type]
    _rewrite(file, lambda tensors: tensors["lm_head.weight"][-1].add_(1))
    assert not twins_agree(_located(tmp_path), _OneRank())  # type: ignore[arg-type]


def test_what_transformers_has_to_convert_is_left_to_it(tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "bin")
    torch.save({}, tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "model.safetensors").unlink()
    assert _located(tmp_path / "bin").whole_because == "the weights are in .bin files"


def test_experts_that_do_not_make_up_the_model_are_refused_by_tensor(tmp_path: Path) -> None:
    experts: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config("qwen3_moe"))
    experts.save_pretrained(tmp_path)
    file, name = tmp_path / "model.safetensors", "model.layers.2.mlp.experts.7.up_proj.weight"
    assert not _located(tmp_path).whole_because
    _rewrite(file, lambda tensors: tensors.update({name: tensors[name][1:]}))
    with pytest.raises(
        ConfigError, match=rf"has {name} with shape \(15, 32\) and 15 more tensors for model\.layers\.2"
    ):
        _located(tmp_path)
    _rewrite(file, lambda tensors: tensors.pop(name))
    with pytest.raises(
        ConfigError, match=r"and 14 more tensors for model\.layers\.2\.mlp\.experts\.gate_up_proj, of which"
    ):
        _located(tmp_path)


def test_a_large_model_says_how_far_it_is_and_a_small_one_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 4.0, 11.0, 11.0, 12.0])
    with capture_logs() as lines:
        sharded_loading._Progress(100, shown=True).add(100)
        monkeypatch.setattr(sharded_loading, "LARGE_BYTES", 100)
        progress = sharded_loading._Progress(100, shown=True, now=lambda: next(clock))
        for read_bytes in (20, 40, 40):
            progress.add(read_bytes)
        sharded_loading._Progress(100, shown=False).add(100)
    assert [line["done_bytes"] for line in lines] == [0, 60, 100]
    assert {(line["event"], line["total_bytes"]) for line in lines} == {("model_loading", 100)}
