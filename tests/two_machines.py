"""A second machine for tests: a network namespace with a cable (veth) to this one. The file system is shared.

Needs root and iproute2: `needs("machines")`. Both "machines" have one host name, which resolves to loopback: what finds
its peer by host name fails here, as it does on many hosts.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SecondMachine:
    """The other end of the cable."""

    name: str
    """Of the namespace."""
    here: str
    """This machine's address on the cable."""
    near_end: str
    """This machine's interface on the cable."""
    far_end: str
    """The other one's."""

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` there; mounts that it makes are its own."""
        return ["ip", "netns", "exec", self.name, *words]

    def cut(self) -> None:
        """Takes the cable out: nothing arrives any more, and nobody is told."""
        _ip("link", "set", self.near_end, "down")

    def mend(self) -> None:
        """Puts the cable back."""
        _ip("link", "set", self.near_end, "up")


@contextmanager
def second_machine() -> Iterator[SecondMachine]:
    """One that is gone afterwards."""
    number = os.getpid() % 60_000
    subnet = f"10.213.{number // 250}"
    machine = SecondMachine(
        name=f"sluice-{number}",
        here=f"{subnet}.{number % 250 + 1}",
        near_end=f"near{number}",
        far_end=f"far{number}",
    )
    _ip("netns", "add", machine.name)
    try:
        _ip("link", "add", machine.near_end, "type", "veth", "peer", "name", machine.far_end, "netns", machine.name)
        _ip("addr", "add", f"{machine.here}/24", "dev", machine.near_end)
        _ip("link", "set", machine.near_end, "up")
        _ip("-n", machine.name, "link", "set", "lo", "up")
        _ip("-n", machine.name, "addr", "add", f"{subnet}.254/24", "dev", machine.far_end)
        _ip("-n", machine.name, "link", "set", machine.far_end, "up")
        yield machine
    finally:
        # By name: with its namespace it would go some time later, and hold its address until then.
        subprocess.run(["ip", "link", "del", machine.near_end], check=False, capture_output=True)
        _ip("netns", "del", machine.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
