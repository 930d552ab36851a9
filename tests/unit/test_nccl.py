"""The environment of NCCL: what is set once, what a pair changes for a moment, what a user is told."""

import os

import pytest

from sluice.nccl import JOIN_LIMIT_S, prepare_nccl, settings_to_mend, without_watchdog

WAIT = "TORCH_NCCL_BLOCKING_WAIT"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (WAIT, "TORCH_NCCL_DUMP_ON_TIMEOUT", "TORCH_NCCL_NONBLOCKING_TIMEOUT"):
        monkeypatch.setenv(name, "")  # so that it is taken away again
        monkeypatch.delenv(name)
    return monkeypatch


def test_what_a_user_has_set_stays_and_the_rest_keeps_a_failed_pair_from_ending_the_process(
    environment: pytest.MonkeyPatch,
) -> None:
    prepare_nccl()
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"
    assert os.environ["TORCH_NCCL_NONBLOCKING_TIMEOUT"] == f"{JOIN_LIMIT_S:.0f}"
    environment.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    prepare_nccl()
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"


@pytest.mark.parametrize("before", ["0", "1"])
def test_a_pair_has_no_watchdog_and_the_groups_after_it_are_as_they_were(
    environment: pytest.MonkeyPatch, before: str
) -> None:
    environment.setenv(WAIT, before)
    with without_watchdog():
        assert os.environ[WAIT] == "1"
    assert os.environ[WAIT] == before


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("NCCL_SOCKET_IFNAME", "eth0", "NCCL_SOCKET_IFNAME=eth0: fits none of this machine's interfaces (ens5, lo)"),
        ("NCCL_SOCKET_IFNAME", "=ens", "fits none"),
        ("NCCL_SOCKET_IFNAME", "^ens,lo", "fits none"),
        ("NCCL_SOCKET_IFNAME", "ens", ""),
        ("NCCL_SOCKET_IFNAME", "=ib0,ens5:1", ""),
        ("NCCL_SOCKET_IFNAME", "^docker", ""),
        ("NCCL_P2P_DISABLE", "1", "NCCL_P2P_DISABLE=1: GPUs of one machine"),
        ("NCCL_P2P_DISABLE", "0", ""),
        (WAIT, "1", "FSDP waits"),
        ("NCCL_DEBUG", "INFO", ""),
    ],
)
def test_a_setting_that_breaks_or_slows_nccl_is_named(name: str, value: str, told: str) -> None:
    found = settings_to_mend({name: value}, interfaces=["lo", "ens5"])
    assert [line for line in found if told in line] == found
    assert bool(found) == bool(told)
