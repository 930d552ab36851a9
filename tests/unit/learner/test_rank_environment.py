"""What a rank's environment gets, and how many threads compute."""

import os
from pathlib import Path

import pytest
import torch

from services.learner.distributed.rank_environment import ALLOCATOR, cpu_threads, prepare_allocator
from services.learner.distributed.ranks import device_of_rank
from sluice.errors import ConfigError
from tests.unit.learner.learner_cases import make_config


@pytest.mark.parametrize("set_by_user", ["", ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF"])
def test_the_allocator_grows_its_segments_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, set_by_user: str
) -> None:
    for name in (ALLOCATOR, "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    if set_by_user:
        monkeypatch.setenv(set_by_user, "max_split_size_mb:64")
    prepare_allocator()
    assert os.environ.get(ALLOCATOR) == {
        "": "expandable_segments:True",
        ALLOCATOR: "max_split_size_mb:64",
    }.get(set_by_user)


def test_offloaded_shards_get_the_cores_and_all_else_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")

    def threads(*, on_cuda: bool, **learner: object) -> int:
        return cpu_threads(make_config(Path("model"), learner=learner), on_cuda=on_cuda)

    assert threads(on_cuda=True, cpu_offload=True) == 4
    assert threads(on_cuda=True) == threads(on_cuda=False, cpu_offload=True) == 1
    assert threads(on_cuda=True, cpu_offload=True, threads=3) == threads(on_cuda=False, threads=3) == 3


def test_a_rank_takes_the_device_at_its_place_and_one_without_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert device_of_rank(alone=False) == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert device_of_rank(alone=True) == torch.device("cuda", 0)
    with pytest.raises(ConfigError, match="rank 3 of this machine has no GPU: CUDA shows 2"):
        device_of_rank(alone=False)
