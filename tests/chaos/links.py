"""The links of a run as cables that can be cut one by one: three machines that are network namespaces of this one.

    here ---- hub (sluice up: Redis, coordinator, learner) ---- one machine a rollout or reward

A cut link swallows packets and tells nobody: routing rules send what goes over it to an interface with no one behind it.
Links between the same two machines are told apart by the ports of their servers. Needs root and iproute2: `needs("machines")`.
"""

import enum
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_SINK_TABLE = "100"
_NOBODY = "192.0.2.1"
"""Behind the sink; an address of RFC 5737, which no machine has."""
_OURS, _EXEMPT, _REST = "1", "10", "20"
"""Priorities of rules: of the hub's own traffic, of what still passes, of all that is cut."""


class Link(enum.Enum):
    """Two ends that speak to each other."""

    COORDINATOR_ROLLOUT = "coordinator - rollout"
    COORDINATOR_REWARD = "coordinator - reward"
    COORDINATOR_LEARNER = "coordinator - learner"
    LEARNER_ROLLOUT = "learner - rollout"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ports:
    """Where the servers listen."""

    coordinator: int
    rollout: int
    learner: int
    """Known once it is registered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cables:
    """The machines by name of their namespace, and their addresses."""

    hub: str
    rollout: str
    reward: str
    subnet: str

    @property
    def hub_address(self) -> str:
        """At which everybody reaches the hub."""
        return f"{self.subnet}.1"

    @property
    def rollout_address(self) -> str:
        """At which the hub reaches the rollout's machine."""
        return f"{self.subnet}.66"

    @property
    def reward_address(self) -> str:
        """At which the hub reaches the reward's machine."""
        return f"{self.subnet}.130"

    def command(self, machine: str, *words: str) -> list[str]:
        """The command line that runs `words` on a machine."""
        return ["ip", "netns", "exec", machine, *words]

    def cut(self, link: Link, ports: Ports) -> None:
        """From now on nothing passes."""
        tcp = ("ipproto", "tcp")
        if link is Link.COORDINATOR_REWARD:
            _rule(self.reward, "add", "pref", _REST, "to", f"{self.subnet}.0/24", "lookup", _SINK_TABLE)
        elif link is Link.COORDINATOR_LEARNER:
            own = ("iif", "lo", "to", self.hub_address, *tcp)
            for port in (ports.coordinator, ports.learner):
                for end in ("sport", "dport"):
                    _rule(self.hub, "add", "pref", _OURS, *own, end, str(port), "lookup", _SINK_TABLE)
        else:
            of_coordinator = (("dport", str(ports.coordinator)), ("sport", str(ports.rollout)))
            table = _SINK_TABLE if link is Link.COORDINATOR_ROLLOUT else "main"
            for end in of_coordinator:
                _rule(self.rollout, "add", "pref", _EXEMPT, *tcp, *end, "lookup", table)
            if link is Link.LEARNER_ROLLOUT:
                _rule(self.rollout, "add", "pref", _REST, "to", f"{self.subnet}.0/24", "lookup", _SINK_TABLE)

    def mend(self) -> None:
        """Everything passes again."""
        for machine in (self.hub, self.rollout, self.reward):
            for priority in (_OURS, _EXEMPT, _REST):
                while _rules_at(machine, priority):
                    _rule(machine, "del", "pref", priority)


@contextmanager
def three_machines() -> Iterator[Cables]:
    """Three that are gone afterwards."""
    number = os.getpid() % 60_000
    cables = Cables(
        hub=f"hub-{number}",
        rollout=f"rollout-{number}",
        reward=f"reward-{number}",
        subnet=f"10.{214 + number // 30_000}.{number % 250}",
    )
    machines = (cables.hub, cables.rollout, cables.reward)
    try:
        for machine in machines:
            _ip("netns", "add", machine)
        for machine in machines:
            _ip("-n", machine, "link", "set", "lo", "up")
            _add_sink(machine)
        _connect(cables, None, f"n{number}", block=0)
        _connect(cables, cables.rollout, f"r{number}", block=64)
        _connect(cables, cables.reward, f"w{number}", block=128)
        # Rules can come before the one that delivers to this machine itself only if that one stands back.
        _rule(cables.hub, "add", "pref", "5", "lookup", "local")
        _rule(cables.hub, "del", "pref", "0", "lookup", "local")
        yield cables
    finally:
        subprocess.run(["ip", "link", "del", f"n{number}"], check=False, capture_output=True)
        for machine in machines:
            subprocess.run(["ip", "netns", "del", machine], check=False, capture_output=True)


def _connect(cables: Cables, machine: str | None, name: str, *, block: int) -> None:
    """A cable from the hub to a machine (None: here), which has the block's second address."""
    there = () if machine is None else ("-n", machine)
    where = ("netns", cables.hub)
    _ip(*there, "link", "add", name, "type", "veth", "peer", "name", f"{name}h", *where)
    _ip("-n", cables.hub, "addr", "add", f"{cables.subnet}.{block + 1}/26", "dev", f"{name}h")
    _ip("-n", cables.hub, "link", "set", f"{name}h", "up")
    _ip(*there, "addr", "add", f"{cables.subnet}.{block + 2}/26", "dev", name)
    _ip(*there, "link", "set", name, "up")
    if block:
        _ip(*there, "route", "add", f"{cables.subnet}.1", "via", f"{cables.subnet}.{block + 1}")


def _add_sink(machine: str) -> None:
    """What takes the sink's table leaves for a neighbour that does not exist."""
    _ip("-n", machine, "link", "add", "sink0", "type", "veth", "peer", "name", "sink1")
    for end in ("sink0", "sink1"):
        _ip("-n", machine, "link", "set", end, "up")
    nobody = ("lladdr", "02:00:00:00:00:01", "dev", "sink0", "nud", "permanent")
    _ip("-n", machine, "neigh", "add", _NOBODY, *nobody)
    way = ("via", _NOBODY, "dev", "sink0", "onlink")
    _ip("-n", machine, "route", "add", "default", *way, "table", _SINK_TABLE)


def _rules_at(machine: str, priority: str) -> bool:
    listed = subprocess.run(
        ["ip", "-n", machine, "rule", "list", "pref", priority], check=True, capture_output=True, text=True
    )
    return bool(listed.stdout.strip())


def _rule(machine: str, *words: str) -> None:
    _ip("-n", machine, "rule", *words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
