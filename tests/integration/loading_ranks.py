"""Ranks that load models both ways and compare every bit. Started once for all numbers of ranks, see `main`.

usage: loading_ranks.py FOLDER CASES_JSON. Processes are forked after the imports, because importing takes longer than all else.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from services.learner.distributed.ranks import Ranks
from services.learner.policy import attention, lora, model, sharded_loading
from services.learner.policy.forward import Policy
from services.learner.policy.model_config import load_weights, read_model_config
from services.learner.policy.proof import compare
from sluice.config.schema import Config
from sluice.errors import ConfigError
from tests.unit.learner.learner_cases import make_config


def main() -> None:
    """Every case on two ranks, then on four; ends with 1 when a rank has failed."""
    folder, cases = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    _import_all(cases)
    for size in (2, 4):
        ranks = [_fork(partial(_rank, folder, cases, rank=rank, size=size)) for rank in range(size)]
        ends = [os.waitpid(rank, 0)[1] for rank in ranks]
        if any(ends):
            sys.exit(1)


def _import_all(cases: list[dict[str, Any]]) -> None:
    """What a first load imports, once for all ranks."""
    for case in cases:
        config = make_config(Path(case["path"]), **case["config"])
        model_config = read_model_config(config)
        head = model.make_head(config, model_config)
        causal_lm = load_weights(config.model.path, model_config, attention="eager")
        lora.attach(causal_lm, config)
        compare(causal_lm, head)


def _fork(work: Callable[[], None]) -> int:
    """The new process, which ends with 1 when `work` fails."""
    if child := os.fork():
        return child
    code = 1
    try:
        work()
        code = 0
    except Exception:  # noqa: BLE001 - the test shows what it was
        traceback.print_exc()
    finally:
        os._exit(code)


def _rank(folder: Path, cases: list[dict[str, Any]], *, rank: int, size: int) -> None:
    store = dist.FileStore(str(folder / f"store-{size}"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    mesh = init_device_mesh("cpu", (size,))
    ranks = Ranks(rank=rank, size=size, device=torch.device("cpu"), mesh=mesh, backend="gloo")
    for case in cases:
        assert_same_bits(Path(case["path"]), case["config"], ranks)
    _assert_one_fault_for_all(folder, ranks)
    store.add("done", 1)
    end_s = time.monotonic() + 60.0
    while store.add("done", 0) < size:  # a rank that ends closes its sockets, which another may still read
        assert time.monotonic() < end_s, "another rank has not come to its end"
        time.sleep(0.01)
    dist.destroy_process_group()


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


if __name__ == "__main__":
    main()
