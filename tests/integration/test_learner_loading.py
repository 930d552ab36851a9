"""A model that is loaded in shards has every bit of one that each rank loads whole, however many ranks there are."""

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from services.learner.distributed.ranks import Ranks
from services.learner.policy import proof, sharded_loading
from services.learner.policy.model import load_policy
from services.learner.policy.model_config import load_weights
from tests.forked import run_ranks
from tests.integration import loading_ranks
from tests.integration.loading_ranks import assert_same_bits
from tests.mixture_models import write_mixture
from tests.unit.learner.learner_cases import make_config, write_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

LORA = {"run": {"seed": 5}, "model": {"lora_rank": 3, "lora_alpha": 12.0}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models whose 40 rows of the vocabulary, 32 of the MLP and 8 of the keys do not all split evenly over 3 or 4 ranks."""
    root = tmp_path_factory.mktemp("models")
    tied = AutoModelForCausalLM.from_pretrained(write_tiny_model(root / "tied"))
    untied = AutoModelForCausalLM.from_pretrained(write_tiny_model(root / "untied", tied=False))
    untied.to(torch.bfloat16).save_pretrained(root / "files", max_shard_size="6KB")
    assert len(list((root / "files").glob("*.safetensors"))) > 2
    tied.to(torch.float16).base_model.save_pretrained(root / "trunk")  # names without the base model's prefix
    write_mixture(root / "experts", "deepseek_v3", layers=2)  # 6 experts; a bias that nobody trains
    write_tiny_model(root / "cut")
    whole = (root / "cut" / "model.safetensors").read_bytes()
    (root / "cut" / "model.safetensors").write_bytes(whole[:-1])
    return root


def _cases(folder: Path) -> list[dict[str, Any]]:
    sections = {
        "tied": LORA,
        "untied": {"learner": {"cpu_offload": True}},
        "files": LORA,
        "trunk": {"learner": {"gradient_checkpointing": True}},
        "experts": LORA,
    }
    return [{"path": str(folder / name), "config": config} for name, config in sections.items()]


def test_one_rank_has_the_same_bits(folder: Path, alone: Ranks) -> None:
    for case in _cases(folder):
        assert_same_bits(Path(case["path"]), case["config"], alone)


def test_the_model_of_the_proof_is_gone_before_the_real_one_is_built(
    folder: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    proved: list[weakref.ref[torch.nn.Module]] = []

    def load(*args: Any, **settings: Any) -> PreTrainedModel:
        proved.append(weakref.ref(made := load_weights(*args, **settings)))
        return made

    def build(*args: Any, **settings: Any) -> PreTrainedModel:
        assert [each() for each in proved] == [None]
        return really_build(*args, **settings)

    really_build = sharded_loading.build
    monkeypatch.setattr(proof, "load_weights", load)
    monkeypatch.setattr(sharded_loading, "build", build)
    load_policy(make_config(folder / "tied"), alone)
    assert proved


def test_several_ranks_have_the_same_bits_and_refuse_together(folder: Path, tmp_path: Path) -> None:
    """Of the 6 experts each of the first 3 ranks has 2, and the last has none."""
    run_ranks(loading_ranks.main, str(folder), json.dumps(_cases(folder)), ranks=4, log=tmp_path / "log")
