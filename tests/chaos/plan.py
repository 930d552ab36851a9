"""What is done to a run, and when: a pure function of a seed, so that a run that failed can be had again.

Over consecutive seeds every victim is killed and frozen, for a while and for good, in turn; the moment, the second victim
and how long a while is are drawn. A moment is a number of committed steps and a pause after it: the same place in the run
on any machine. Where members lie beside the honest ones, a run has two such liars: the one in turn, and one that is drawn.
Runs with environments have a rotation of their own, whose strikes wait for what an episode is about.
"""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from random import Random


class Victim(enum.Enum):
    """A process of a run by what it does."""

    ROLLOUT = "rollout"
    """With its engine: vLLM's core runs inside this process."""
    REWARD = "reward"
    GRADER = "grader"
    """The reward's worker process, which runs the verifiers."""
    COORDINATOR = "coordinator"
    LEADER = "learner rank 0"
    FOLLOWER = "learner rank 1"
    TORCHRUN = "torchrun"
    """The parent of the learner's ranks."""
    REDIS = "redis"
    ENVIRONMENT = "environment"
    """A server of an environment, which is started by hand."""


LAUNCHED: Sequence[Victim] = tuple(victim for victim in Victim if victim is not Victim.ENVIRONMENT)
"""Those that the launcher starts, and starts again."""


class Deed(enum.Enum):
    """What is done to it."""

    KILL = "killed"
    FREEZE = "frozen"
    FREEZE_FOR_GOOD = "frozen for good"
    """Until somebody notices and ends it."""


class Moment(enum.Enum):
    """What some episode must be about when a strike comes."""

    ANY = ""
    THIRD_TURN = "in a third turn"
    BETWEEN_TURNS = "between two turns"


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """One deed to one victim."""

    victim: Victim
    deed: Deed
    thaw_after_s: float | None = None
    """When one that is frozen for a while goes on."""

    def __str__(self) -> str:
        said = f"{self.victim.value} {self.deed.value}"
        return said if self.thaw_after_s is None else f"{said} for {self.thaw_after_s:.1f} s"


@dataclass(frozen=True, kw_only=True, slots=True)
class Strike:
    """Hits that come at once."""

    after_step: int
    """Steps committed before."""
    pause_s: float
    """Then this long."""
    hits: tuple[Hit, ...]
    moment: Moment = Moment.ANY
    """Then until an episode is there."""

    def __str__(self) -> str:
        when = f"after step {self.after_step} + {self.pause_s:.2f} s"
        when += f" {self.moment.value}" if self.moment.value else ""
        return f"{when}: {' and '.join(map(str, self.hits))}"


class Lie(enum.Enum):
    """What a lying member does with the work that it gets (tests/liars.py)."""

    ROLLOUT_NONSENSE = "rollout-nonsense"
    ROLLOUT_REFUSES = "rollout-refuses"
    ROLLOUT_SLOW = "rollout-slow"
    ROLLOUT_TRICKLES = "rollout-trickles"
    ROLLOUT_FLAPS = "rollout-flaps"
    REWARD_NONSENSE = "reward-nonsense"
    REWARD_REFUSES = "reward-refuses"
    REWARD_SLOW = "reward-slow"
    REWARD_FLAPS = "reward-flaps"


LIAR = "liar-"
"""Begins the name of every lying member."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LyingMember:
    """One liar of a run."""

    service_id: str
    lie: Lie
    boasts: bool
    """Whether it claims a huge capacity."""

    def __str__(self) -> str:
        return f"{self.service_id} is {self.lie.value}{' and boasts' * self.boasts}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All strikes of one run, in order, and its liars."""

    seed: int
    strikes: tuple[Strike, ...]
    liars: tuple[LyingMember, ...] = ()

    def __str__(self) -> str:
        return f"seed {self.seed}: " + "; ".join(map(str, (*self.liars, *self.strikes)))


ROTATION: Sequence[tuple[Victim, Deed]] = tuple((victim, deed) for deed, victim in product(Deed, LAUNCHED))

EPISODE_ROTATION: Sequence[tuple[Victim, Deed, Moment]] = (
    (Victim.ENVIRONMENT, Deed.KILL, Moment.BETWEEN_TURNS),
    (Victim.ROLLOUT, Deed.KILL, Moment.THIRD_TURN),
    (Victim.COORDINATOR, Deed.KILL, Moment.BETWEEN_TURNS),
    (Victim.ENVIRONMENT, Deed.FREEZE, Moment.ANY),
    (Victim.REDIS, Deed.KILL, Moment.BETWEEN_TURNS),
    (Victim.REWARD, Deed.KILL, Moment.ANY),
    (Victim.ROLLOUT, Deed.FREEZE, Moment.THIRD_TURN),
    (Victim.ENVIRONMENT, Deed.KILL, Moment.THIRD_TURN),
    (Victim.COORDINATOR, Deed.FREEZE_FOR_GOOD, Moment.THIRD_TURN),
)
"""With its reward a run loses the environments that the reward hosts."""

THAWS_S = (1.0, 5.0)
"""Shorter and longer than `coordinator.heartbeat_timeout_s` of the runs here, shorter than their `launch.frozen_timeout_s`."""


def make_plan(seed: int, *, steps: int, strikes: int = 2, liars: bool = False) -> Plan:
    """`strikes` strikes in a run of `steps` steps, each in its part of the run; the last may come when all is trained."""
    random = Random(seed)
    span = steps // strikes
    made = []
    for index in range(strikes):
        victim, deed = ROTATION[(seed * strikes + index) % len(ROTATION)]
        hits = [_hit(random, victim, deed)]
        if random.random() < 0.5:
            other = random.choice([one for one in LAUNCHED if one is not victim])
            hits.append(_hit(random, other, random.choice(list(Deed))))
        made.append(
            Strike(
                after_step=index * span + random.randint(1, span), pause_s=random.uniform(0.0, 0.3), hits=tuple(hits)
            )
        )
    return Plan(seed=seed, strikes=tuple(made), liars=_two_liars(random, seed) if liars else ())


def make_episode_plan(seed: int, *, steps: int, strikes: int = 3) -> Plan:
    """As make_plan, for a run with environments; three seeds in a row have the whole rotation.

    Strikes come early in their parts of the run, while there are episodes to wait for.
    """
    random, span = Random(seed), steps // strikes
    made = []
    for index in range(strikes):
        victim, deed, moment = EPISODE_ROTATION[(seed * strikes + index) % len(EPISODE_ROTATION)]
        after_step, pause_s = index * span + random.randint(1, span // 2), random.uniform(0.0, 0.3)
        hits = (_hit(random, victim, deed),)
        made.append(Strike(after_step=after_step, pause_s=pause_s, hits=hits, moment=moment))
    return Plan(seed=seed, strikes=tuple(made))


def _two_liars(random: Random, seed: int) -> tuple[LyingMember, ...]:
    kinds = [*Lie]
    return tuple(
        LyingMember(service_id=f"{LIAR}{place}", lie=lie, boasts=random.random() < 0.5)
        for place, lie in enumerate((kinds[seed % len(kinds)], random.choice(kinds)))
    )


def _hit(random: Random, victim: Victim, deed: Deed) -> Hit:
    return Hit(
        victim=victim,
        deed=deed,
        thaw_after_s=random.uniform(*THAWS_S) if deed is Deed.FREEZE else None,
    )
