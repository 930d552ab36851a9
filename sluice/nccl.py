"""What NCCL and torch's NCCL groups read from the environment: what Sluice sets, and which settings break or slow a run.

Standard library alone. torch reads most of these variables when it makes a group; the facts below are those of torch 2.7 to
2.13 (ProcessGroupNCCL.cpp). Nothing here was run on a GPU.

A group of torch's has a watchdog, and the watchdog of a group whose operation has timed out tells the first group of the
process to dump and to end the process some minutes later. For the groups that carry gradients this is right. A pair that
carries weights fails whenever its rollout dies, so a pair has no watchdog (`without_watchdog`): its own thread sees deadline
and errors.
"""

import contextlib
import os
import threading
from collections.abc import Collection, Iterator, Mapping

from sluice.interfaces import NCCL_INTERFACE

JOIN_LIMIT_S = 120.0
"""Limit of making a communicator; chosen: twice what NVIDIA/nccl#1646 reports for a slow start."""

_BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"

_SETTINGS = {
    # A failed pair must not make the first group dump and end the process, whoever gives the signal.
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
    # The limit of non-blocking communicators, which are those of pairs alone; torch reads it once a process.
    "TORCH_NCCL_NONBLOCKING_TIMEOUT": f"{JOIN_LIMIT_S:.0f}",
    # torch's default. `without_watchdog` then only replaces the value: glibc moves the environment when a variable is added,
    # and threads of NCCL and torch read the environment at any time.
    _BLOCKING_WAIT: "0",
}


def prepare_nccl() -> None:
    """Sets what the user has not set; to be called before torch makes a group and before there are threads."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)


_environment = threading.Lock()
"""Held while the environment differs, because several threads make groups."""


@contextlib.contextmanager
def without_watchdog() -> Iterator[None]:
    """A group made within this context has no watchdog and no monitor; other groups, such as FSDP's, keep theirs."""
    with _environment:
        before = os.environ.get(_BLOCKING_WAIT, "0")
        os.environ[_BLOCKING_WAIT] = "1"
        try:
            yield
        finally:
            os.environ[_BLOCKING_WAIT] = before


_TRUE = ("1", "y", "yes", "t", "true", "on")

_SLOW = {
    "NCCL_P2P_DISABLE": "GPUs of one machine exchange gradients and weights through host memory",
    "NCCL_SHM_DISABLE": "processes of one machine exchange gradients and weights over sockets",
    "NCCL_IB_DISABLE": "machines exchange gradients and weights over TCP",
    _BLOCKING_WAIT: "FSDP waits on the CPU for every exchange; Sluice sets it for weight transfers alone",
}


def settings_to_mend(environ: Mapping[str, str], *, interfaces: Collection[str]) -> list[str]:
    """A sentence for each setting that breaks or slows NCCL on this machine, which has `interfaces`: the setting, what
    follows, what to do."""
    found = [
        f"{name}={environ[name]}: {then}; unset it unless this machine needs it"
        for name, then in _SLOW.items()
        if environ.get(name, "").strip().lower() in _TRUE
    ]
    chosen = environ.get(NCCL_INTERFACE, "")
    if chosen and interfaces and not any(_is_chosen(name, chosen) for name in interfaces):
        found.append(
            f"{NCCL_INTERFACE}={chosen}: fits none of this machine's interfaces ({', '.join(sorted(interfaces))}), so that "
            "NCCL finds no network; name one of them, or unset it"
        )
    return found


def _is_chosen(name: str, chosen: str) -> bool:
    """NCCL's rule: a list of prefixes, or of whole names after `=`; after `^` the list of those that are not taken."""
    inverted = chosen.startswith("^")
    names = chosen.removeprefix("^")
    exact = names.startswith("=")
    listed = [each.partition(":")[0] for each in names.removeprefix("=").split(",") if each]
    return any(name == each if exact else name.startswith(each) for each in listed) != inverted
