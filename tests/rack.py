"""A rack of machines behind one narrow link: network namespaces on one bridge, which this machine reaches by one cable.

    here ──── cable of `megabit_per_s` ──── bridge ──┬── machine 0
                                                     ├── machine 1 ...      the rack's own cables are not limited

Needs root, iproute2 and the kernel's token bucket (`tc qdisc tbf`): `needs("rack")`. The file system is shared.
"""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_NAMESPACES = Path("/var/run/netns")
_CLONE_NEWNET = 0x40000000


@dataclass(frozen=True, kw_only=True, slots=True)
class Rack:
    """The machines by name of their namespace."""

    here: str
    """This machine's address on the cable."""
    cable: str
    """This machine's interface on the cable."""
    machines: tuple[str, ...]
    addresses: tuple[str, ...]
    """Of the machines."""

    def limit(self, megabit_per_s: float) -> None:
        """From now on no more leaves this machine for the rack."""
        _run("tc", "qdisc", "replace", "dev", self.cable, *_bucket(megabit_per_s))

    def sent_bytes(self) -> int:
        """What has left this machine for the rack since the rack was made."""
        return int(Path(f"/sys/class/net/{self.cable}/statistics/tx_bytes").read_text())

    def slow_down(self, number: int, megabit_per_s: float) -> None:
        """From now on no more leaves a machine of the rack."""
        _run("tc", "-n", self.machines[number], "qdisc", "replace", "dev", "rack0", *_bucket(megabit_per_s))


def enter(machine: str) -> None:
    """Moves this process, which must have no second thread yet, into a machine."""
    libc = ctypes.CDLL(None, use_errno=True)
    with (_NAMESPACES / machine).open("rb") as namespace:
        if libc.setns(namespace.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {machine}")


@contextmanager
def rack(machines: int, *, megabit_per_s: float) -> Iterator[Rack]:
    """One that is gone afterwards."""
    number = os.getpid() % 60_000
    names = [f"rack-{number}-{place}" for place in range(machines)]
    bridge, cable, subnet = f"rack-{number}", f"rk{number}", f"10.{216 + number // 30_000}.{number % 250}"
    try:
        for name in (bridge, *names):
            _run("ip", "netns", "add", name)
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "here", "netns", bridge)
        _run("ip", "addr", "add", f"{subnet}.1/24", "dev", cable)
        _run("ip", "link", "set", cable, "up")
        lines = ["link add bridge type bridge", "link set bridge up", "link set here master bridge up"]
        for place, name in enumerate(names):
            lines += [
                f"link add m{place} type veth peer name rack0 netns {name}",
                f"link set m{place} master bridge up",
            ]
        _batch(bridge, lines)
        for place, name in enumerate(names):
            _batch(name, ["link set lo up", f"addr add {subnet}.{place + 2}/24 dev rack0", "link set rack0 up"])
        addresses = tuple(f"{subnet}.{place + 2}" for place in range(machines))
        made = Rack(here=f"{subnet}.1", cable=cable, machines=tuple(names), addresses=addresses)
        made.limit(megabit_per_s)
        yield made
    finally:
        # By name: with its namespace it would go some time later, and hold its address until then.
        subprocess.run(["ip", "link", "del", cable], check=False, capture_output=True)
        for name in (bridge, *names):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _bucket(megabit_per_s: float) -> tuple[str, ...]:
    """A token bucket of 10 ms, and a queue of 200 ms before it."""
    burst = max(16_000, round(megabit_per_s * 1e6 / 8 * 0.010))
    return "root", "tbf", "rate", f"{megabit_per_s:g}mbit", "burst", str(burst), "latency", "200ms"


def _batch(machine: str, lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    subprocess.run(["ip", "-n", machine, "-batch", "-"], input=text, check=True, capture_output=True, text=True)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)
