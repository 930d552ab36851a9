"""One registered service process: its role, its state, its load, and the weights that it is known to hold."""

import asyncio
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

from services.coordinator.state.health import Health
from sluice.config.schema import Config
from sluice.config.schema.environments import AGENT
from sluice.policy_version import PolicyVersion


class Role(enum.Enum):
    """The role of a service."""

    ROLLOUT = "rollout"
    REWARD = "reward"
    ENVIRONMENT = "environment"

    @property
    def needs_no_weights(self) -> bool:
        """Whether a member serves as soon as it is here."""
        return self in (Role.REWARD, Role.ENVIRONMENT)

    LEARNER = "learner"


def needed_roles(config: Config, *, agents: bool = True) -> tuple[Role, ...]:
    """The roles without which a run does not train; without `agents` those that it needs before agents have come."""
    hosted = [one for one in config.environments.values() if agents or one.environment != AGENT]
    environments = (Role.ENVIRONMENT,) if hosted else ()
    return (Role.ROLLOUT, Role.REWARD, Role.LEARNER, *environments)


@dataclass(frozen=True, kw_only=True, slots=True)
class EnvironmentInfo:
    """An environment that a member hosts."""

    version: str
    scores: bool
    """Whether its episodes end with a score; otherwise a grader scores them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpus:
    """What a member computes on, all of one kind."""

    name: str
    count: int
    """0: it computes on CPUs."""
    memory_bytes: int
    """Of each."""


class State(enum.Enum):
    """The state of a service."""

    REGISTERED = "registered"
    SYNCING = "syncing"
    READY = "ready"
    DRAINING = "draining"
    QUARANTINED = "quarantined"
    LOST = "lost"


DELTAS_TRIED = 3
"""Deltas that may fail one after another before a rollout gets whole versions for good: it may be one that takes none."""

MOST_RUNNING = 1 << 20
"""Samples that a member may say it runs: chosen, more than a machine has memory for."""
LONGEST_WAIT_TEXT = 500
"""Characters of what a member says it waits for: a path, two numbers and the fix."""


@dataclass(kw_only=True, slots=True, eq=False)
class Member:
    """One registered process."""

    service_id: str
    role: Role
    address: str
    incarnation: str
    capacity: int
    last_beat_s: float
    metrics_address: str = ""
    """host:port of the member's Prometheus endpoint; empty without an endpoint."""
    engine: str = ""
    """A rollout's engine: implementation, version and device."""
    device: str = ""
    """The identity of the device that takes a rollout's weights (sluice/accelerator.py); empty: not told."""
    gpus: Gpus | None = None
    """For people; None: not told."""
    host: str = ""
    """The label of the member's machine, or the host in its address where it tells none."""
    memory: str = ""
    """Rollouts with the same one map each other's copies of a version (sluice/weights/lending.py); empty: it maps none."""
    environments: Mapping[str, EnvironmentInfo] = field(default_factory=dict)
    """What an environment server hosts, by the names that rows give."""
    own: bool = False
    """Whether the member stands for agents at this process's gateway: no call to it crosses a wire; its capacity is known."""
    shown_role: str = ""
    """The role in the process's credentials, for calls to it; empty: `role`. A reward service hosts environments too."""
    state: State = State.REGISTERED
    reason: str = ""
    """Why the member is quarantined or lost."""
    version: PolicyVersion | None = None
    """The version that the member is known to hold."""
    digest: str = ""
    """The digest with which a rollout has acknowledged `version`; empty: nobody has heard it, or a delta to it has failed."""
    encoding: str = ""
    """How a rollout's newest version travelled: dense or delta; empty before one, and with files."""
    sent_bytes: int = 0
    """How many bytes travelled."""
    deltas_failed: int = 0
    """How many deltas to a rollout have failed one after another."""
    whole_in_a_row: int = 0
    """How many of a rollout's newest versions travelled whole, without a delta between."""
    granted: int = -1
    """The largest version number that was ever pushed to this process; its samples may carry no larger one."""
    lineages: set[str] = field(default_factory=set)
    """The lineages of the versions that were pushed to this process."""
    finishing: bool = False
    """Whether the rollout lets running samples end before new weights, and so gets no new group."""
    target: int | None = None
    """How much of `capacity` the member takes at once now, as its newest heartbeat states; None: all of it, and more may wait
    there."""
    running: int = 0
    """Running samples or groups, as the member's heartbeats report."""
    preemptions: int | None = None
    """A rollout's preempted samples since its start, as its newest heartbeat reports; None before one."""
    outstanding: int = 0
    """Samples (rollout), groups (reward) or episodes (environment) that this coordinator has given to the member and not got
    back."""
    weights: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held by a weight push, and by an evaluation to pin the version."""
    relays_from_s: float = 0.0
    """The time before which no other rollout gets weights from this one; infinite for one whose bytes were wrong."""
    received_bytes_per_s: float = 0.0
    """The rate at which it received the newest weights; 0 before that."""
    source: str = ""
    """The name of the service that sent it the newest weights."""
    push_ms: float = 0.0
    """How long the newest push took."""
    own_weights: bool = False
    """Whether the rollout serves its model folder's weights, and nobody pushes others."""
    barred: str = ""
    """Why this process gets no work for good; empty for a process that may get work."""
    waits_for: str = ""
    """What the member waits for by its own account, for people."""
    leaving: bool = False
    """Whether the member has said that it leaves, so that its silence is no loss."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the member is lost or replaced; waiters on a call to the member stop waiting."""
    health: Health = field(default_factory=Health)
    """The service's record, which a new process of the service takes over."""

    @property
    def takes(self) -> int:
        """How much the member takes at once now."""
        return self.capacity if self.target is None else min(self.capacity, self.target)

    @property
    def pauses(self) -> bool:
        """Whether the member gets no work because its answers failed."""
        return self.health.until_s is not None

    @property
    def base(self) -> tuple[PolicyVersion, str] | None:
        """The version, with its digest, against which a rollout may be sent a delta; None: it gets versions whole."""
        if self.version is None or not self.digest or self.deltas_failed >= DELTAS_TRIED:
            return None
        return self.version, self.digest

    def travelled(self, encoding: str, *, sent_bytes: int) -> None:
        """Books how a rollout's newest version came."""
        self.encoding, self.sent_bytes = encoding, sent_bytes
        if encoding == "delta":
            self.whole_in_a_row = self.deltas_failed = 0
        else:
            self.whole_in_a_row += 1
