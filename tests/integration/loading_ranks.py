"""One rank that loads models both ways and compares every bit. Arguments: the models' folder and the cases as JSON."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from services.learner.distributed.ranks import Ranks, join_ranks
from services.learner.policy import attention, lora, model, sharded_loading
from services.learner.policy.forward import Policy
from services.learner.policy.model_config import load_weights, read_model_config
from sluice.config.schema import Config
from sluice.errors import ConfigError
from tests.unit.learner.learner_cases import make_config


def main() -> None:
    """Every case; raises AssertionError where a bit or a refusal differs."""
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    ranks = join_ranks()
    for case in cases:
        assert_same_bits(Path(case["path"]), case["config"], ranks)
    _assert_one_fault_for_all(folder, ranks)
    ranks.leave()


def assert_same_bits(path: Path, sections: Mapping[str, Any], ranks: Ranks) -> None:
    """A policy that was loaded in shards has the parameters and buffers of one that every rank loaded whole."""
    config = make_config(path, **sections)
    generator = torch.get_rng_state()
    with mock.patch.object(model, "load_weights", side_effect=AssertionError("read whole")):
        sharded = model.load_policy(config, ranks)
    assert torch.equal(torch.get_rng_state(), generator), "other random numbers afterwards"
    ours, theirs = sharded.causal_lm, _whole(config, ranks).causal_lm
    found, wanted = (dict(each.named_parameters(remove_duplicate=False)) for each in (ours, theirs))
    assert list(found) == list(wanted)
    for name in wanted:
        assert found[name].requires_grad == wanted[name].requires_grad
        _assert_equal(name, found[name], wanted[name])
    found, wanted = (dict(each.named_buffers()) for each in (ours, theirs))
    assert list(found) == list(wanted)
    assert wanted
    for name in wanted:
        _assert_equal(name, found[name], wanted[name])
    tied = ours.get_input_embeddings().weight is ours.get_output_embeddings().weight
    assert tied == ours.config.tie_word_embeddings


def _whole(config: Config, ranks: Ranks) -> Policy:
    """As every rank did it before, and still does for a folder that transformers has to convert."""
    model_config = read_model_config(config)
    causal_lm = load_weights(config.model.path, model_config, attention=attention.NAME)
    lora.attach(causal_lm, config)
    return model.shard(Policy(causal_lm, model.make_head(config, model_config)), ranks, config=config)


def _assert_equal(name: str, found: Tensor, wanted: Tensor) -> None:
    if isinstance(wanted, DTensor):
        assert isinstance(found, DTensor)
        assert (found.placements, found.shape) == (wanted.placements, wanted.shape), name
        found, wanted = found.to_local(), wanted.to_local()
    assert (found.dtype, found.device, found.shape) == (wanted.dtype, wanted.device, wanted.shape), name
    assert torch.equal(found.view(torch.uint8), wanted.view(torch.uint8)), name


def _assert_one_fault_for_all(folder: Path, ranks: Ranks) -> None:
    """The last rank alone sees a broken copy; every rank says the same, and nobody begins to build or to read."""
    path = folder / ("cut" if ranks.rank == ranks.size - 1 else "tied")
    with mock.patch.object(sharded_loading, "build", side_effect=AssertionError("built")):
        try:
            model.load_policy(make_config(path), ranks)
        except ConfigError as error:
            said = str(error)
        else:
            raise AssertionError("no error")
    assert said.startswith(f"model.path: {folder / 'cut' / 'model.safetensors'} is cut short or no safetensors file: ")
    assert ranks.hear_all(said) == [said] * ranks.size
