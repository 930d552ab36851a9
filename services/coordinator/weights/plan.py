"""Which source each rollout gets a version from: a tree with the learner at its root. Pure: names and hosts in, names out.

    learner ──▶ first of host A ──▶ first of host B ──▶ first of host C    one chain over the hosts, narrowest link last
       │             └─▶ second of A ──▶ third of A                       on a host, one behind the other
       └─▶ LOCAL_AT_LEARNER of the learner's own host, the others behind them
    first of a memory ──▶ all others of this memory                        they map its copy once it is whole

A host's bytes come over its link once, to its *entry*, and leave over its link once. So a push to any number of hosts takes
the time of the narrowest link, and one bucket's time a host until the last one has begun. A rollout that may not relay
(its bytes were wrong, or it was slow) is a leaf behind the end of the chain, where nobody waits for it. Of the rollouts that
map each other's memory one receives the bytes, and is the only one of them that passes them on.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

LOCAL_AT_LEARNER: Final = 4
"""Rollouts of the learner's own host that the learner serves itself. Chosen: a run on one machine has no more of them, and
between processes of one machine a chain saves no bytes on any link."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Receiver:
    """A rollout that gets the payload, or has the payload."""

    name: str
    host: str
    """Receivers of one host share its link to the others."""
    bytes_per_s: float = 0.0
    """The rate at which it received lately; 0: never measured."""
    may_relay: bool = True
    memory: str = ""
    """Receivers of one memory map each other's copies; empty: this one maps none."""
    has_begun: bool = False
    """Whether it receives, or has received, this payload."""


def plan_sources(
    receivers: Collection[Receiver], *, root: str, root_host: str, former: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The source of each receiver, by name.

    `former` is an earlier answer, maybe for other receivers: who has a source there that may still serve keeps that source.
    The root serves at most LOCAL_AT_LEARNER + 1 receivers, unless none may relay: then it serves all. A host whose
    receivers may not relay at all gets each of them over its link.
    """
    former = former or {}
    mapping = _mapping(receivers, former)
    receiving = [receiver for receiver in receivers if receiver.name not in mapping]
    tree = _Tree(receiving, root=root, root_host=root_host)
    tree.keep(former)
    for receiver in _in_order(receiving, former):
        if receiver.name not in tree.source:
            tree.attach(receiver)
    return tree.source | mapping


def _mapping(receivers: Iterable[Receiver], former: Mapping[str, str]) -> dict[str, str]:
    """Those that map another's copy, with that other: of each memory a relay that has begun, else the one of last time."""
    memories = defaultdict[str, list[Receiver]](list)
    for receiver in receivers:
        memories[receiver.memory].append(receiver)
    memories.pop("", None)
    mapping = dict[str, str]()
    for sharing in memories.values():
        names = {receiver.name for receiver in sharing}

        def rank(receiver: Receiver, names: set[str] = names) -> tuple[bool, bool, str]:
            return not receiver.has_begun, former.get(receiver.name, receiver.name) in names, receiver.name

        first = min((receiver for receiver in sharing if receiver.may_relay), key=rank, default=None)
        if first is not None:
            mapping |= dict.fromkeys(names - {first.name}, first.name)
    return mapping


class _Tree:
    """A plan that grows. A name is connected when its sources lead to the root."""

    def __init__(self, receivers: Collection[Receiver], *, root: str, root_host: str) -> None:
        self.source = dict[str, str]()
        self._root = root
        self._hosts = {root: root_host} | {receiver.name: receiver.host for receiver in receivers}
        self._relays = {root} | {receiver.name for receiver in receivers if receiver.may_relay}
        self._served: dict[str, list[str]] = {}
        """Receivers by source."""
        self._local: Counter[str] = Counter()
        """By name: relays of its own host that it serves."""
        self._feeding = set[str]()
        """Hosts over whose link the bytes go on to another host already."""
        self._depth = dict[str, int]()
        """Links to the root of all that are connected."""
        self._relays_at: dict[str, list[str]] = {}
        """Connected relays by host, the one next to the root first."""

    def keep(self, former: Mapping[str, str]) -> None:
        """Takes over the sources that may still serve; of two receivers in one place the one with more behind it stays."""
        behind = _behind(self._hosts, former)
        for name in sorted(self._hosts, key=lambda name: (-behind[name], name)):
            source = former.get(name, "")
            if name == self._root or source not in self._relays:
                continue
            if name in self._relays:
                stays = self._has_place(source, name)
            else:
                stays = source != self._root or self._relays == {self._root}
            if stays:
                self._serve(name, source)
        self._reach(self._root, 0)

    def attach(self, receiver: Receiver) -> None:
        """Gives the receiver a connected source, and so connects what hangs on the receiver."""
        name, near = receiver.name, self._relays_at.get(receiver.host, [])
        if receiver.may_relay:
            free = [other for other in near if self._has_place(other, name)]
            source = min(free or self._ends() or self._connected(), key=lambda other: (self._depth[other], other))
        else:
            source = self._source_of_leaf(near)
        self._serve(name, source)
        self._reach(name, self._depth[source] + 1)

    def _ends(self) -> list[str]:
        """Of every host whose link feeds nobody yet, the relay next to the root. Each connected host brings a link of its own
        for the one link that brings the bytes to that host, so there is one, but where a former plan's link leads from a relay
        that is not connected yet, or to the root's host."""
        return [names[0] for host, names in self._relays_at.items() if host not in self._feeding]

    def _connected(self) -> list[str]:
        """All relays that are connected: a link carries the bytes twice rather than not at all."""
        return [name for names in self._relays_at.values() for name in names]

    def _source_of_leaf(self, near: list[str]) -> str:
        """A relay of the leaf's own host, else of the chain's last host, else any: the one with the fewest receivers."""
        own = [name for name in near if name != self._root]
        last = [name for end in self._ends() for name in self._relays_at[self._hosts[end]] if name != self._root]
        rest = [name for names in self._relays_at.values() for name in names if name != self._root]
        return min(
            own or last or rest or [self._root],
            key=lambda name: (len(self._served.get(name, ())), -self._depth[name], name),
        )

    def _has_place(self, source: str, name: str) -> bool:
        if self._hosts[source] != self._hosts[name]:
            return self._hosts[source] not in self._feeding
        return self._local[source] < (LOCAL_AT_LEARNER if source == self._root else 1)

    def _serve(self, name: str, source: str) -> None:
        self.source[name] = source
        self._served.setdefault(source, []).append(name)
        if name not in self._relays:
            return  # a leaf takes nobody's place
        if self._hosts[source] == self._hosts[name]:
            self._local[source] += 1
        else:
            self._feeding.add(self._hosts[source])

    def _reach(self, name: str, depth: int) -> None:
        """Notes that `name` and all behind it are connected."""
        level = [name]
        while level:
            for reached in level:
                self._depth[reached] = depth
                if reached in self._relays:
                    self._relays_at.setdefault(self._hosts[reached], []).append(reached)
            level, depth = [below for reached in level for below in self._served.get(reached, ())], depth + 1


def _behind(names: Iterable[str], former: Mapping[str, str]) -> Counter[str]:
    """How many of `names` hung on each in the former plan."""
    behind = Counter[str]()
    for name in names:
        for _ in range(_links_up(name, former) if name in former else 0):
            behind[name := former[name]] += 1
    return behind


def _in_order(receivers: Collection[Receiver], former: Mapping[str, str]) -> list[Receiver]:
    """The order in which receivers without a source get one: as they stood before; then newcomers, widest host first, hosts
    of unknown width among the widest; those that may not relay come last."""
    width = dict[str, float]()
    for receiver in receivers:
        rate = receiver.bytes_per_s or math.inf
        width[receiver.host] = min(width.get(receiver.host, math.inf), rate)

    def rank(receiver: Receiver) -> tuple[bool, int, float, str, str]:
        links = _links_up(receiver.name, former)
        return not receiver.may_relay, links, -width[receiver.host], receiver.host, receiver.name

    return sorted(receivers, key=rank)


def _links_up(name: str, former: Mapping[str, str]) -> int:
    """Links above `name` in the former plan; for a newcomer more than there can be."""
    links = 0
    while name in former and links <= len(former):
        name, links = former[name], links + 1
    return links or len(former) + 1
